"""Chosen grids: the noise levels between which the model itself is easiest to solve.

A fine solution tells the error of an Euler step between any two of its levels, for one evaluation at each level; the
best way down in n steps is then a shortest path, by dynamic programming. The idea is GITS's (Chen et al., "On the
Trajectory Regularity of ODE-based Diffusion Sampling", arXiv 2405.11326). What a step costs here is the square of its
RMS error, summed over the fitting noises: a sum of squares would leave the choice to the few that err most.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibration.cache import Cache
from calibration.distributed import total
from calibration.noises import Noises
from calibration.reference import cost, solution
from calibration.schedules import logarithmic
from models.progress import ProgressBars

Grid = Callable[[int], list[float]]  # number of steps → noise levels, the last 0
LEVELS = 64  # to choose among, or twice the number of steps


def choose(
    noises: Noises, most: int, fine_steps: int, cache: Cache, progress: ProgressBars
) -> tuple[Grid, dict[float, Tensor]]:
    """The best grid of any number of steps up to ``most``, and the same-noise solution at every level that it may have.

    One solution by ``fine_steps`` or more steps serves every number of steps.
    """
    spec = noises.network.model.spec
    levels = logarithmic(max(LEVELS, 2 * most), spec.sigma_min, spec.sigma_max)
    spent = cost(len(levels) - 1, fine_steps) * len(noises) + (len(levels) - 1) * noises.fitting
    with progress("fine trajectory", spent) as noises.network.meter.progress:
        fine = solution(noises, levels, fine_steps, cache)
        errors = step_errors(noises.part(slice(noises.fitting)), fine, cache)
    return lambda steps: [levels[place] for place in shortest(errors**2, steps)], fine


def step_errors(noises: Noises, fine: Mapping[float, Tensor], cache: Cache) -> np.ndarray:
    """[levels, levels]: RMS error of an Euler step from one level of ``fine`` to another, summed over all noises.

    ``fine`` has the same-noise solution [n, …] at each level. Entries that do not go down are infinite.
    """
    sigmas = sorted(fine, reverse=True)
    below = torch.tensor(sigmas).view(-1, *[1] * noises.noise.dim())

    def sums(block: Noises, images: slice) -> dict[str, np.ndarray]:
        states = torch.stack([fine[sigma][images] for sigma in sigmas])
        errors = np.full((len(sigmas), len(sigmas)), np.inf)
        for i, sigma in enumerate(sigmas[:-1]):
            slope = (states[i] - block.network(states[i], sigma)) / sigma
            reached = states[i] + (below[i + 1 :].to(slope) - sigma) * slope
            errors[i, i + 1 :] = (reached - states[i + 1 :]).square().flatten(2).mean(2).sqrt().sum(1).cpu().numpy()
        return {"errors": errors}

    summed = np.zeros((len(sigmas), len(sigmas)))
    for images, block in noises.blocks():
        key = {"Euler step errors": block.key, "levels": sigmas}
        summed += cache.recall(key, partial(sums, block, images))["errors"]
    return total(summed)


def shortest(errors: np.ndarray, steps: int) -> list[int]:
    """The places of the ``steps + 1`` levels, from the first to the last, whose steps' errors have the least sum."""
    cost, came_from = np.full(len(errors), np.inf), []
    cost[0] = 0.0
    for _ in range(steps):
        paths = cost[:, None] + errors
        came_from.append(paths.argmin(0))
        cost = paths.min(0)
    places = [len(errors) - 1]
    for previous in reversed(came_from):
        places.append(int(previous[places[-1]]))
    return places[::-1]
