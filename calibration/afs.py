"""The analytical first step (AFS): the first evaluation's answer, known before there is any noise.

At σ_max a state is all but pure noise, and the best answer, whatever the noise, is nearly the mean of the data.
Dockhorn et al. (GENIE, arXiv 2210.05475) take it for zero and save the evaluation. Here it is the mean of the network's
answers to the fitting noises, a constant of the plan, since few data have a mean of zero.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.models.progress import ProgressBars, silent


def mean_image(noises: Noises, cache: Cache, progress: ProgressBars = silent) -> Tensor:
    """The mean [*shape] of denoised images at σ_max over all processes' fitting noises.

    Kept block by block.
    """
    sigma = noises.network.model.spec.sigma_max

    def denoised(block: Noises) -> dict[str, np.ndarray]:
        return {"sum": block.network(sigma * block.noise, sigma).sum(0).cpu().numpy()}

    summed = np.zeros(noises.noise.shape[1:])
    meter = noises.network.meter
    with progress("mean image", noises.fitting) as meter.progress:
        for _, block in noises.part(slice(noises.fitting)).blocks():
            summed += cache.recall({"denoised": block.key, "sigma": sigma}, partial(denoised, block), meter)["sum"]
    count = total(np.array([noises.fitting], float))
    return torch.from_numpy(total(summed) / count).to(noises.noise)
