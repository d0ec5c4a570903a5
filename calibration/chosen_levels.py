"""Chosen grids: the noise levels at which this model is easiest to solve.

A search starts from the pilot's shortest path (calibration/pilot.py). It moves one level at a time, to another level of
the fine solution, as long as a fitted sampler's images come nearer to the converged ones. It tries a move on a few
noises first, and on more only if the move paid there. ``START`` takes the best path and moves nothing: that is enough
where refinement moves levels afterwards.

The search lowers the mean of images' errors. Their RMS would leave the choice to the few noises whose paths part. Other
sets of noises have other such paths.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache as once
from itertools import product

import numpy as np
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import Noises, digest
from edge_sampler.calibration.evaluate.reference import States, solution
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.pilot import Pilot, most_levels, pilot, pilot_cost
from edge_sampler.calibration.scout import SCOUT, Attempt, Ground, attempt
from edge_sampler.calibration.solvers.base import Scheme, Solver
from edge_sampler.models.progress import ProgressBars, silent

Grid = Callable[[int], list[float]]  # number of steps → noise levels, the last 0
POWERS = (1.0, 1.5)  # of what is left of an error: Euler carries it, and a better solver leaves less
STARTS = 2 * len(POWERS)  # of a search: with an analytical first step in mind, and without


@dataclass(frozen=True)
class Effort:
    """How much a search tries."""

    tried: tuple[int, ...] = (16, 128)  # noises that a move is tried on, one number after the other
    shifts: tuple[int, ...] = (2, 1, 1)  # each level is moved by so many places, up and down, in turn
    allowed: int = 1300  # evaluations that it may take for each step
    least: int = 11  # so many steps count, where there are fewer

    def stages(self, fitting: int) -> list[int]:
        """On how many noises a move is tried, one number after the other, where so many fit."""
        return sorted({min(count, fitting) for count in self.tried})

    def cost(self, steps: int, fitting: int) -> int:
        """Network evaluations that ``search`` spends at the most."""
        every = STARTS * steps + len(self.shifts) * steps * (steps - 1)
        return min(self.allowed * max(steps, self.least), sum(self.stages(fitting)) * every)


USUAL = Effort()
START = Effort(tried=(64,), shifts=())


@dataclass(frozen=True)
class Choice:
    """The levels that there are to choose among, and ``fine``, the same-noise solution of all ``noises`` there."""

    noises: Noises
    told: Pilot
    fine: States
    cache: Cache
    progress: ProgressBars
    effort: Effort = USUAL

    def grid(self, mean: Tensor | None, scout: Solver = SCOUT) -> Grid:
        """The best grids for ``scout``, each searched for when it is first asked for.

        With a ``mean``, for samplers whose first step is analytical.
        """
        fitting = self.noises.part(slice(self.noises.fitting))

        @once
        def best(steps: int) -> list[float]:
            spent = self.effort.cost(steps, self.noises.fitting)
            with self.progress(f"search for {steps} levels", spent) as fitting.network.meter.progress:
                kinds = product({False, mean is not None}, POWERS)
                starts = [self.told.grid(steps, afs, power) for afs, power in kinds]
                return search(starts, fitting, self.fine, self.cache, mean, scout, self.effort)

        return best


def choose(
    noises: Noises, numbers: Iterable[int], cache: Cache, progress: ProgressBars = silent, effort: Effort = USUAL
) -> Choice:
    """Makes the choice ready for grids of these numbers of steps. One fine solution serves all of them."""
    meter = noises.network.meter
    with progress("pilot noises", pilot_cost(numbers, noises.fitting)) as meter.progress:
        told = pilot(noises, numbers, cache)
    with progress("fine trajectory", (len(told.levels) - 1) * len(noises)) as meter.progress:
        return Choice(noises, told, solution(noises, told.levels, None, cache), cache, progress, effort)


def choice_cost(numbers: Iterable[int], noises: int, fitting: int, effort: Effort = USUAL) -> int:
    """Evaluations of one sample that ``choose`` and a search for each of ``numbers`` spend at the most."""
    searched = sum(effort.cost(steps, fitting) for steps in {*numbers})
    return pilot_cost(numbers, fitting) + most_levels(numbers) * noises + searched


def search(
    starts: Sequence[Sequence[float]],
    noises: Noises,
    fine: States,
    cache: Cache,
    mean: Tensor | None = None,
    scout: Solver = SCOUT,
    effort: Effort = USUAL,
) -> list[float]:
    """The best noise levels that are found from the best of ``starts`` on, by moving one at a time.

    They are levels of ``fine``, the same-noise solution [n or more, …] of ``noises``, for ``scout``, which evaluates
    once a step; with a ``mean`` its first step is analytical. The search ends with the last of the shifts, or
    before it has spent more than ``effort.cost``.
    """
    levels, steps = sorted(fine, reverse=True), len(starts[0]) - 1
    fitting = int(total(np.array([len(noises)], float))[0])
    counts, asked = effort.stages(fitting), steps - (mean is not None)
    grounds = [Ground.of(noises.first(count), fine) for count in counts]
    left = effort.cost(steps, fitting)

    def run(ground: Ground, places: Sequence[int], known: Sequence[Tensor] = ()) -> Attempt:
        sigmas = [levels[place] for place in places]
        return attempt(Scheme(scout, sigmas, steps, scout.history or 0, mean), ground, known)

    def descend() -> dict[str, np.ndarray]:
        nonlocal left
        begun = [[levels.index(sigma) for sigma in start] for start in starts]
        left -= asked * sum(counts) * len(begun)
        tries = [(places, [run(ground, places) for ground in grounds]) for places in begun]
        places, best = min(tries, key=lambda one: one[1][-1].error)
        for shift in effort.shifts:
            for index in range(1, steps):
                for place in (places[index] - shift, places[index] + shift):
                    if not places[index - 1] < place < places[index + 1]:
                        continue
                    same = index - (mean is not None)  # answers, above the level that moves
                    moved, tried = [*places[:index], place, *places[index + 1 :]], list[Attempt]()
                    for ground, before, count in zip(grounds, best, counts, strict=True):
                        left -= (asked - same) * count
                        if left < 0:
                            return {"places": np.array(places)}
                        tried.append(run(ground, moved, before.answers[:same]))
                        if not tried[-1].error < before.error:
                            break
                    else:
                        places, best = moved, tried
        return {"places": np.array(places)}

    key = {
        "searched": noises.key,
        "from": [list(start) for start in starts],
        "levels": levels,
        "search": [scout.name, counts, effort.shifts, left],
    }
    if mean is not None:
        key["mean"] = digest(mean)
    return [levels[place] for place in cache.recall_together(key, descend, noises.network.meter)["places"]]


def scout_of(solver: Solver) -> Solver:
    """Whose images tell which levels are better for ``solver``: a fixed one's own, where it evaluates once a step."""
    return solver if solver.history is None and solver.once_a_step else SCOUT
