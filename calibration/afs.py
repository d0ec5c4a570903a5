"""The analytical first step (AFS): the first evaluation's answer, known before there is any noise.

At σ_max a state is all but pure noise, and the best answer, whatever the noise, is nearly the mean of the data.
Dockhorn et al. (GENIE, arXiv 2210.05475) take it for zero and save the evaluation. Here it is the mean of the network's
answers to fitting noises, a constant of the plan, since few data have a mean of zero. A model that is told a label,
such as a class, has a constant for each: the mean of all labels' data is that of none.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.condition import label_of

EACH = 8  # noises for the mean of a label: at σ_max answers hardly depend on them
MOST_NUMBERS = 2**19  # of all labels' means, which a plan and every graph of it hold


def labels_with_means(spec: ModelSpec) -> int:
    """How many labels have a mean each; 0 for a model that is told anything else, or nothing, and for too many."""
    label = None if spec.varies else label_of(spec.inputs.conditions)
    return label[1] if label and label[1] * math.prod(spec.shape) <= MOST_NUMBERS else 0


def mean_images(noises: Noises, cache: Cache, progress: ProgressBars = silent) -> Tensor:
    """What a plan's first step starts from: the mean of each label [labels, *shape], or else ``mean_image``."""
    spec, network = noises.network.model.spec, noises.network
    count = labels_with_means(spec)
    if not count:
        return mean_image(noises, cache, progress)
    ((name, condition),) = spec.inputs.conditions.items()
    few, sigma = noises.part(slice(noises.fitting)).first(EACH), spec.sigma_max
    labels = few.network.conditions[name].new_tensor([*range(condition.choices), condition.null][:count])

    def sums() -> dict[str, np.ndarray]:
        told = replace(few.network, conditions={name: labels.repeat_interleave(len(few))})
        answers = told(sigma * few.noise.repeat(count, *[1] * len(spec.shape)), sigma)
        return {"sums": answers.view(count, *few.noise.shape).sum(1).cpu().numpy()}

    with progress("mean images", count * len(few)) as network.meter.progress:
        kept = cache.recall({"denoised of each label": few.key, "sigma": sigma}, sums, network.meter)
    return torch.from_numpy(total(kept["sums"]) / total(np.array([len(few)], float))).to(noises.noise)


def mean_image(noises: Noises, cache: Cache, progress: ProgressBars = silent) -> Tensor:
    """The mean [*shape] over all processes' fitting noises, whatever they are told; kept block by block."""
    fitting, sigma = noises.part(slice(noises.fitting)), noises.network.model.spec.sigma_max

    def denoised(block: Noises) -> dict[str, np.ndarray]:
        return {"sum": block.network(sigma * block.noise, sigma).sum(0).cpu().numpy()}

    summed, meter = np.zeros(noises.noise.shape[1:]), noises.network.meter
    with progress("mean image", len(fitting)) as meter.progress:
        for _, block in fitting.blocks():
            summed += cache.recall({"denoised": block.key, "sigma": sigma}, partial(denoised, block), meter)["sum"]
    count = total(np.array([len(fitting)], float))
    return torch.from_numpy(total(summed) / count).to(noises.noise)
