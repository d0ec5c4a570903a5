"""Chosen grids: the noise levels between which the model itself is easiest to solve.

A fine solution tells the error of an Euler step between any two of its levels, for one evaluation at each level. The
best way down in n steps is then a shortest path, by dynamic programming. The idea is GITS's (Chen et al., "On the
Trajectory Regularity of ODE-based Diffusion Sampling", arXiv 2405.11326). The cost of a step is the square of its mean
RMS error over the fitting noises; a sum of squares would leave the choice to the few that err most.

An error made at a high noise level shrinks before it reaches the final image. That factor is measured. Grid 1 minimises
errors as they are made. Grid 2 weights each by the part of it that reaches the final image. Both use Euler's errors,
which only stand for those of a solver that remembers more. So grid 3 starts from the better one and moves one level at
a time, as long as the images of a fitted solver come nearer to the converged ones. A solver tries all three.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.reference import States, cost, solution
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.fit import RIDGE, fit, image_errors, mean_error
from edge_sampler.calibration.schedules import logarithmic
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, after, base_step
from edge_sampler.models.progress import ProgressBars

Grid = Callable[[int], list[float]]  # number of steps → noise levels, the last 0
HIGHEST = 1000.0  # below the first level; between it and a flow's start nothing changes
LEVELS = 64  # to choose among, or twice the number of steps
PROBES = 8  # noises on which the shrinking of errors is measured
STRIDE = 4  # length, in levels, of the Euler steps that make an error and carry it to the lowest level
SCOUT = find("iia-ddim")  # the solver whose images tell which levels are better
SHIFTS = (4, 2, 1, 1)  # the search moves each level by so many places, up and down, in turn


def choose(
    noises: Noises, steps: Iterable[int], fine_steps: int, cache: Cache, progress: ProgressBars
) -> tuple[list[Grid], States]:
    """The best grids of these numbers of ``steps``, and the same-noise solution at all levels that they may have.

    One grid counts errors as they are made, one as they reach the final image, and one is searched for.
    One solution by ``fine_steps`` or more steps serves every number of steps.
    """
    spec, numbers = noises.network.model.spec, sorted(set(steps))
    levels = logarithmic(intervals(numbers), spec.sigma_min, min(spec.sigma_max, HIGHEST))
    levels[0] = spec.sigma_max
    fitting = noises.part(slice(noises.fitting))
    probes = fitting.first(PROBES)
    spent = cost(len(levels) - 1, fine_steps) * len(noises) + (len(levels) - 1) * len(fitting)
    with progress("fine trajectory", spent) as noises.network.meter.progress:
        fine = solution(noises, levels, fine_steps, cache)
        errors = step_errors(fitting, fine, cache)
    with progress("error propagation", probe_cost(len(levels)) * len(probes)) as noises.network.meter.progress:
        left = errors * remainders(probes, fine, cache)

    def grid(costs: np.ndarray, steps: int) -> list[float]:
        return [levels[place] for place in shortest(costs, steps)]

    paths: list[Grid] = [partial(grid, errors**2), partial(grid, left**2)]
    found: dict[int, list[float]] = {}
    for number in numbers:
        with progress(
            f"search for {number} levels", search_cost(number) * len(fitting)
        ) as noises.network.meter.progress:
            found[number] = search([path(number) for path in paths], fitting, fine, cache)
    return [*paths, found.__getitem__], fine


def intervals(numbers: Iterable[int]) -> int:
    """Between the levels that there are to choose among, for grids of these numbers of steps."""
    return max(LEVELS, 2 * max(numbers))


def choice_cost(numbers: Iterable[int], fine_steps: int, noises: int, fitting: int) -> int:
    """Evaluations of one sample that ``choose`` spends at the most."""
    count = intervals(numbers)
    searched = sum(search_cost(number) for number in set(numbers))
    return (
        cost(count, fine_steps) * noises + (count + searched) * fitting + probe_cost(count + 1) * min(PROBES, fitting)
    )


@dataclass(frozen=True)
class Attempt:
    """A grid that the search tries.

    Args:
        places: its levels, as places among those of the fine solution.
        error: the scout's, the mean of its images' errors.
        denoised: the scout's denoised images [n, …] at each level, used again where only later levels change.
    """

    places: tuple[int, ...]
    error: float
    denoised: Sequence[Tensor]


def search(starts: Sequence[list[float]], noises: Noises, fine: Mapping[float, Tensor], cache: Cache) -> list[float]:
    """The best noise levels that are found from the best of ``starts`` on, by moving one at a time.

    They are levels of ``fine``, the same-noise solution [n or more, …]. Half of the noises fit the scout, all judge it.
    """
    levels = sorted(fine, reverse=True)

    def attempt(places: Sequence[int], known: Sequence[Tensor] = ()) -> Attempt:
        """``known`` are the denoised images above the first level that moved."""
        sigmas, denoised = [levels[place] for place in places], [*known]

        def denoise(x: Any, sigma: float) -> Any:
            denoised.append(noises.network(x, sigma))
            return denoised[-1]

        scheme = Scheme(SCOUT, sigmas, len(sigmas) - 1, SCOUT.history or 0)
        goals = [fine[sigma][: len(noises)] for sigma in sigmas[1:]]
        x, fitting = sigmas[0] * noises.noise, len(noises) // 2
        _, images = fit(scheme, after(known, denoise), x, lambda index, state: goals[index], fitting, RIDGE)
        return Attempt(tuple(places), mean_error(images - goals[-1]), denoised)

    def descend() -> dict[str, np.ndarray]:
        best = min((attempt([levels.index(sigma) for sigma in start]) for start in starts), key=lambda one: one.error)
        for shift in SHIFTS:
            for index in range(1, len(best.places) - 1):
                for place in (best.places[index] - shift, best.places[index] + shift):
                    if not best.places[index - 1] < place < best.places[index + 1]:
                        noises.network.meter.progress(len(noises) * (len(best.places) - 1 - index))  # saved
                        continue
                    moved = (*best.places[:index], place, *best.places[index + 1 :])
                    best = min(best, attempt(moved, best.denoised[:index]), key=lambda one: one.error)
        return {"places": np.array(best.places)}

    key = {"searched": noises.key, "from": [list(start) for start in starts], "levels": levels}
    return [levels[place] for place in cache.recall_together(key, descend)["places"]]


def search_cost(steps: int) -> int:
    """Network evaluations that ``search`` spends on one image, at the most."""
    return 2 * steps + len(SHIFTS) * steps * (steps - 1)


def step_errors(noises: Noises, fine: States, cache: Cache) -> np.ndarray:
    """[levels, levels]: RMS error of an Euler step from one level of ``fine`` to another, summed over all noises.

    ``fine`` has the same-noise solution [n, …] at each level. Entries that do not go down are infinite.
    """
    sigmas = sorted(fine, reverse=True)
    below = torch.tensor(sigmas).view(-1, *[1] * noises.noise.dim())

    def sums(block: Noises, rows: slice) -> dict[str, np.ndarray]:
        states = torch.stack([*fine.part(rows).values()])
        errors = np.full((len(sigmas), len(sigmas)), np.inf)
        for i, sigma in enumerate(sigmas[:-1]):
            slope = (states[i] - block.network(states[i], sigma)) / sigma
            reached = states[i] + (below[i + 1 :].to(slope) - sigma) * slope
            errors[i, i + 1 :] = (reached - states[i + 1 :]).square().flatten(2).mean(2).sqrt().sum(1).cpu().numpy()
        return {"errors": errors}

    summed = np.zeros((len(sigmas), len(sigmas)))
    for rows, block in noises.blocks():
        key = {"Euler step errors": block.key, "levels": sigmas}
        summed += cache.recall(key, partial(sums, block, rows))["errors"]
    return total(summed)


def remainders(noises: Noises, fine: States, cache: Cache) -> np.ndarray:
    """[levels]: the part of an Euler step's error at each level of ``fine`` that reaches the last one, by RMS.

    The state that a step reaches and the one that it should have reached go down side by side, in Euler steps too.
    """
    sigmas = sorted(fine, reverse=True)
    euler = find("ddim").run

    def sums(block: Noises, rows: slice) -> dict[str, np.ndarray]:
        made_and_left, states = np.zeros((2, len(sigmas))), fine.part(rows)
        for place, sigma in enumerate(sigmas[1:-1], start=1):
            start = sigmas[max(0, place - STRIDE)]
            reached = euler(block.network, states[start], [start, sigma], base_step, history=0)
            pair = torch.cat([reached, states[sigma]])
            ends = euler(block.network, pair, [*sigmas[place:-1:STRIDE], sigmas[-1]], base_step, history=0)
            made_and_left[:, place] = [image_errors(torch.sub(*both.chunk(2))).sum().item() for both in (pair, ends)]
        return {"made and left": made_and_left}

    summed = np.zeros((2, len(sigmas)))
    for rows, block in noises.blocks():
        key = {"errors made and left": block.key, "levels": sigmas}
        summed += cache.recall(key, partial(sums, block, rows))["made and left"]
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
