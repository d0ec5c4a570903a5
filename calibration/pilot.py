"""Solves a few noises first. They decide the levels of all fine solutions, and where a search for a grid starts.

Levels lie where a fine solution needs them. Their density is the cube root of an Euler step's error, so that each
interval adds the same to the error of a second-order solver. Their number makes the fine solution's error small beside
the error of the sampler to fit.

A search starts from a shortest path, by dynamic programming, as in GITS (Chen et al., "On the Trajectory Regularity of
ODE-based Diffusion Sampling", arXiv 2405.11326). Here the cost of a step is the error that a fitted step leaves if it
may use the slope of the step before. Inner products of the fine solution's states and answers give this cost, without
an evaluation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import gathered, total
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.reference import REFERENCE, States
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.fit import RIDGE, gram, image_errors
from edge_sampler.calibration.schedules import logarithmic
from edge_sampler.calibration.scout import SCOUT, Ground, attempt
from edge_sampler.calibration.solvers.base import Scheme

NOISES = 8
HIGHEST = 1000.0  # below the first level; between it and a flow's start nothing changes
SURVEYED = 64  # levels, uniform in log σ, at which Euler's error is measured
COUNTS = (48, 64)  # of levels, or twice the number of steps
STRIDE = 3  # levels that an Euler step goes down whose error is followed
EVEN = 0.05  # of the mean density is everywhere
TOLERATED = 0.2  # of a sampler's error: the fine solution's, in an image as they mostly are


@dataclass(frozen=True)
class Pilot:
    """``levels`` of the fine solution, the last 0. ``products`` [2L, 2L] are the inner products of its L states, of
    the network's L - 1 answers, and of the mean answer at the highest level, summed over values of all pilot noises.
    ``left`` [L] is the part of a state's error at each level that is left at the last; it may have turned its sign.
    """

    levels: Sequence[float]
    products: np.ndarray
    left: np.ndarray

    def grid(self, steps: int, afs: bool, power: float = 1.0) -> list[float]:
        """Noise levels of the best path in so many steps; with ``afs``, where the first answer is the mean.

        What an error leaves in the image is taken to this ``power``.
        """
        errors = two_step_errors(self.products, self.levels, afs)
        np.multiply(errors, np.abs(self.left) ** (2 * power), out=errors, where=np.isfinite(errors))
        return [self.levels[place] for place in shortest(errors, steps)]


def pilot(noises: Noises, numbers: Iterable[int], cache: Cache, tolerated: float = TOLERATED) -> Pilot:
    """What the first of ``noises`` tell, for samplers of these numbers of steps."""
    first, wanted = noises.first(NOISES), sorted(set(numbers))

    def survey() -> dict[str, np.ndarray]:
        density, (count, *finer) = density_of(first), counts(wanted)
        solved = solve(first, placed(density, count, first))
        left = solved.left(first)
        for count in finer:
            better = solve(first, placed(density, count, first))
            erred = solved.sampler_errors(first, left, wanted[-1])
            if median(image_errors(better.states[-1] - solved.states[-1])) <= tolerated * median(erred):
                break  # not the mean: a few images, whose paths part, move much however fine the solve
            solved, left = better, better.left(first)
        return {"levels": np.array(solved.levels), "products": solved.products(), "left": left}

    key = {"pilot": first.key, "steps": wanted, "constants": [HIGHEST, SURVEYED, COUNTS, STRIDE, EVEN, tolerated]}
    found = cache.recall_together(key, survey, first.network.meter)
    return Pilot(found["levels"].tolist(), found["products"], found["left"])


def counts(numbers: Iterable[int]) -> list[int]:
    """Of levels, that the pilot tries one after the other for these numbers of steps."""
    least = 2 * max(numbers)
    return [count for count in COUNTS if count >= least] or [least]


def most_levels(numbers: Iterable[int]) -> int:
    """That ``pilot`` may settle on, without the last."""
    return counts(numbers)[-1]


def pilot_cost(numbers: Iterable[int], noises: int) -> int:
    """Evaluations of one sample that ``pilot`` spends at the most, on the first of so many noises."""
    tried, steps = counts(numbers), max(numbers)
    return min(NOISES, noises) * (SURVEYED + 2 * sum(tried) + steps * (len(tried) - 1))


def median(errors: Tensor) -> float:
    """Of those of all processes' images, [n] each."""
    return float(np.median(gathered(errors.cpu().numpy())))


@dataclass(frozen=True)
class Solved:
    """The pilot noises' fine solution: the state at each of ``levels``, the network's answer at each but the last."""

    levels: Sequence[float]
    states: Sequence[Tensor]
    answers: Sequence[Tensor]

    def products(self) -> np.ndarray:
        first = self.answers[0]
        count = total(np.array([len(first)], float))[0]
        mean = torch.from_numpy(total(first.sum(0).cpu().numpy()) / count).to(first)
        return gram([*self.states, *self.answers, mean.expand_as(first)])

    def left(self, noises: Noises) -> np.ndarray:
        """[L]: the part of a state's error at each level that is left at the last, as Euler steps carry it there.

        Of an error δ of a state, the network's answer takes over gδ, where g is measured for what an Euler step misses.
        """
        left = np.ones(len(self.levels))
        for place in range(len(self.levels) - 2, 0, -1):
            start, sigma = max(0, place - STRIDE), self.levels[place]
            error = self.euler(start, sigma) - self.states[place]
            answered = noises.network(self.states[place] + error, sigma) - self.answers[place]
            carried, size = total(np.array([(error * answered).sum().item(), error.square().sum().item()]))
            kept = 1 - (1 - self.levels[place + 1] / sigma) * (1 - carried / max(size, np.finfo(float).tiny))
            left[place] = left[place + 1] * kept
        return left

    def euler(self, place: int, below: float) -> Tensor:
        """Where an Euler step takes the state from that place."""
        x, sigma = self.states[place], self.levels[place]
        return x + (below - sigma) / sigma * (x - self.answers[place])

    def sampler_errors(self, noises: Noises, left: np.ndarray, steps: int) -> Tensor:
        """[n]: what each image errs of a sampler that is fitted to these noises."""
        grid = Pilot(self.levels, self.products(), left).grid(steps, afs=False)
        fine = States(self.levels, torch.stack([*self.states]).float().cpu().numpy(), self.states[0][:0])
        return attempt(Scheme(SCOUT, grid, steps, SCOUT.history or 0), Ground.of(noises, fine)).errors


def solve(noises: Noises, levels: Sequence[float]) -> Solved:
    """By one step of ``REFERENCE`` between neighbouring levels."""
    states, answers = [levels[0] * noises.noise], list[Tensor]()

    def ask(x: Tensor, sigma: float) -> Tensor:
        answers.append(noises.network(x, sigma))
        return answers[-1]

    def record(base: Tensor, directions: Sequence[Tensor]) -> Tensor:
        states.append(base)
        return base

    REFERENCE.run(ask, states[0], levels, record, history=0)
    return Solved(levels, states, answers)


def density_of(noises: Noises) -> np.ndarray:
    """[``SURVEYED`` - 1]: how many levels each interval of the survey's grid should have, relatively."""
    spec = noises.network.model.spec
    grid = surveyed(noises)
    grid[0] = spec.sigma_max
    solved = solve(noises, grid)
    errors = []
    for place in range(len(grid) - 2):
        missed = solved.euler(place, grid[place + 1]) - solved.states[place + 1]
        errors.append(total(np.array([image_errors(missed).sum().item()]))[0])
    roots = np.cbrt(errors)
    return roots + EVEN * roots.mean()


def surveyed(noises: Noises) -> list[float]:
    spec = noises.network.model.spec
    return logarithmic(SURVEYED, spec.sigma_min, min(spec.sigma_max, HIGHEST))


def placed(density: np.ndarray, count: int, noises: Noises) -> list[float]:
    """``count`` levels as dense as that, the first the model's highest, and 0."""
    share = np.concatenate([[0], density.cumsum()]) / density.sum()
    logs = np.interp(np.linspace(0, 1, count), share, np.log(surveyed(noises)[:-1]))
    return [noises.network.model.spec.sigma_max, *np.exp(logs[1:]).tolist(), 0.0]


def two_step_errors(products: np.ndarray, levels: Sequence[float], afs: bool) -> np.ndarray:
    """[L, L, L]: square of what a step of IIA-DDIM from level j to k misses, the evaluation before it at i, summed over
    all values. Infinite unless i < j < k; at j = 0 there is no evaluation before, and i is 0 too.
    """
    count, sigmas = len(levels), np.array(levels)
    states = np.eye(len(products))[:count]
    answers = np.eye(len(products))[count : 2 * count - 1]
    if afs:
        answers[0] = np.eye(len(products))[-1]
    noise = (states[:-1] - answers) / sigmas[:-1, None]
    errors = np.full((count, count, count), np.inf)
    for now in range(count - 1):
        below = np.arange(now + 1, count)
        base = states[now] + (sigmas[below, None] - sigmas[now]) * noise[now]
        missed = states[below] - base
        seen = missed @ products
        squares = (seen * missed).sum(1)
        if now == 0:
            errors[0, 0, below] = squares
            continue
        directions = np.stack([answers[now] - answers[:now], noise[now] - noise[:now]], 1)  # [now, 2, …]
        normal = directions @ products @ directions.transpose(0, 2, 1)
        scale = 1 / np.sqrt(np.maximum(np.diagonal(normal, axis1=1, axis2=2), np.finfo(float).tiny))
        normal *= scale[:, :, None] * scale[:, None]
        slope = directions @ seen.T * scale[:, :, None]
        gamma = np.linalg.solve(normal + RIDGE * np.eye(2), slope)
        gained = (gamma * (2 * slope - normal @ gamma)).sum(1)
        errors[:now, now, below] = np.maximum(squares - gained, 0.0)
    return errors


def shortest(errors: np.ndarray, steps: int) -> list[int]:
    """The places of ``steps + 1`` levels, from the first to the last, whose steps' ``errors`` [L, L, L] have the least
    sum; those are of a level, of the one before it and of the one after it.
    """
    cost, came_from = np.full(errors.shape[:2], np.inf), list[np.ndarray]()
    cost[0] = errors[0, 0]  # of paths by their last two levels
    for _ in range(steps - 1):
        paths = cost[:, :, None] + errors
        paths[:, 0] = np.inf  # a path leaves the first level once
        came_from.append(paths.argmin(0))
        cost = paths.min(0)
    last = len(errors) - 1
    places = [last, int(cost[:, last].argmin())]
    for before in reversed(came_from):
        places.append(int(before[places[-1], places[-2]]))
    return places[::-1]
