"""One try of a sampler on some noises, fitted on the way: what its images err. Choices are made by such tries."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.reference import States
from edge_sampler.calibration.fit import RIDGE, fit, image_errors
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, after

SCOUT = find("iia-ddim")  # the solver whose images tell which noise levels are better


@dataclass(frozen=True)
class Ground:
    """Noises, and their same-noise solution ``fine``. Those of even seeds fit and come first; all judge.

    So the same noises fit whichever process has them.
    """

    noises: Noises
    fine: States

    @classmethod
    def of(cls, noises: Noises, fine: States) -> "Ground":
        """Of ``noises``, the first of those that ``fine`` is of."""
        order = sorted(range(len(noises)), key=lambda place: noises.seeds[place] % 2)
        fitting = sum(seed % 2 == 0 for seed in noises.seeds)
        return cls(replace(noises.some(order), fitting=fitting), fine.part(order))


@dataclass(frozen=True)
class Attempt:
    """What each image errs, [n], and the network's ``answers`` [n, …] on the way, one for each evaluation."""

    errors: Tensor
    answers: Sequence[Tensor]

    @property
    def error(self) -> float:
        """The mean over the images of all processes."""
        summed, count = total(np.array([self.errors.sum().item(), len(self.errors)]))
        return float(summed / count)


def attempt(scheme: Scheme, ground: Ground, known: Sequence[Tensor] = ()) -> Attempt:
    """``scheme`` on ``ground``, each step aimed at the solution; ``known`` are its first answers, if they are."""
    answers, noises = [*known], ground.noises

    def ask(x: Tensor, sigma: float) -> Tensor:
        answers.append(noises.network(x, sigma))
        return answers[-1]

    goals = [ground.fine[sigma] for sigma in scheme.sigmas[1:]]
    x = scheme.sigmas[0] * noises.noise
    answer, labels = after(known, ask), noises.network.labels
    _, images = fit(scheme, answer, x, lambda index, state: goals[index], noises.fitting, RIDGE, labels=labels)
    return Attempt(image_errors(images - goals[-1]), answers)
