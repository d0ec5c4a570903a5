"""Chosen grids: the noise levels between which the model itself is easiest to solve.

A fine solution tells the error of an Euler step between any two of its levels, for one evaluation at each level; the
best way down in n steps is then a shortest path, by dynamic programming. The idea is GITS's (Chen et al., "On the
Trajectory Regularity of ODE-based Diffusion Sampling", arXiv 2405.11326). What a step costs here is the square of its
RMS error, summed over the fitting noises: a sum of squares would leave the choice to the few that err most.

Trajectories draw together on their way down, so of an error at a high noise level little may be left in the final
image. How much is measured too; one grid counts errors as they are made, another as they are left. Euler's errors only
stand for those of a solver that remembers more, so each solver tries both grids.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibration.cache import Cache
from calibration.distributed import total
from calibration.fit import image_errors
from calibration.noises import Noises
from calibration.reference import cost, solution
from calibration.schedules import logarithmic
from calibration.solvers import find
from calibration.solvers.base import base_step
from models.progress import ProgressBars

Grid = Callable[[int], list[float]]  # number of steps → noise levels, the last 0
LEVELS = 64  # to choose among, or twice the number of steps
PROBES = 8  # noises that tell what is left of an error
STRIDE = 4  # levels that a step goes down whose error that is, and the steps after it


def choose(
    noises: Noises, most: int, fine_steps: int, cache: Cache, progress: ProgressBars
) -> tuple[list[Grid], dict[float, Tensor]]:
    """The best grids of any number of steps up to ``most``, and the same-noise solution at all levels they may have.

    One grid counts steps' errors as they are made, the other as they are left in the final image. One solution by
    ``fine_steps`` or more steps serves every number of steps.
    """
    spec = noises.network.model.spec
    levels = logarithmic(max(LEVELS, 2 * most), spec.sigma_min, spec.sigma_max)
    fitting = noises.part(slice(noises.fitting))
    probes = fitting.first(PROBES)
    spent = cost(len(levels) - 1, fine_steps) * len(noises) + (len(levels) - 1) * len(fitting)
    with progress("fine trajectory", spent) as noises.network.meter.progress:
        fine = solution(noises, levels, fine_steps, cache)
        errors = step_errors(fitting, fine, cache)
    with progress("what is left of errors", probe_cost(len(levels)) * len(probes)) as noises.network.meter.progress:
        left = errors * remainders(probes, fine, cache)

    def grid(costs: np.ndarray, steps: int) -> list[float]:
        return [levels[place] for place in shortest(costs, steps)]

    return [partial(grid, errors**2), partial(grid, left**2)], fine


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


def remainders(noises: Noises, fine: Mapping[float, Tensor], cache: Cache) -> np.ndarray:
    """[levels]: the part of an Euler step's error at each level of ``fine`` that is left at the last one, by RMS.

    The state that a step reaches and the one that it should have reached go down side by side, in Euler steps too.
    """
    sigmas = sorted(fine, reverse=True)
    euler = find("ddim").run

    def sums(block: Noises, images: slice) -> dict[str, np.ndarray]:
        made_and_left = np.zeros((2, len(sigmas)))
        for place, sigma in enumerate(sigmas[1:-1], start=1):
            start = sigmas[max(0, place - STRIDE)]
            reached = euler(block.network, fine[start][images], [start, sigma], base_step, history=0)
            pair = torch.cat([reached, fine[sigma][images]])
            ends = euler(block.network, pair, [*sigmas[place:-1:STRIDE], sigmas[-1]], base_step, history=0)
            made_and_left[:, place] = [image_errors(torch.sub(*both.chunk(2))).sum().item() for both in (pair, ends)]
        return {"made and left": made_and_left}

    summed = np.zeros((2, len(sigmas)))
    for images, block in noises.blocks():
        key = {"errors made and left": block.key, "levels": sigmas}
        summed += cache.recall(key, partial(sums, block, images))["made and left"]
    made, left = total(summed)
    return np.divide(left, made, out=np.ones(len(sigmas)), where=left > 0)


def probe_cost(levels: int) -> int:
    """Network evaluations that ``remainders`` spends on one image."""
    return sum(1 + 2 * len(range(place, levels - 1, STRIDE)) for place in range(1, levels - 1))


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
