"""The best fixed solver: each at the noise levels that serve it best, with and without an analytical first step.

Nothing is fitted, but the choice among all of them is made for this model and number of evaluations. A grid may end at
0, as this project's do, or at the lowest level, as in the code of most papers: that is one step more to spend above.
"""

from collections.abc import Iterator
from functools import partial

from torch import Tensor

from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.solvers import ALL_SOLVERS
from edge_sampler.calibration.solvers.base import Scheme, Solver, multistep
from edge_sampler.calibration.solvers.pndm import adams_bashforth
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.plan import Plan

LOWER = tuple(
    Solver(f"ipndm-{order}", multistep(partial(adams_bashforth, order=order)), order=min(order, 2)) for order in (2, 3)
)
FIXED = (*(solver for solver in ALL_SOLVERS if solver.history is None and not solver.clip), *LOWER)


def grids(model: Denoiser, intervals: int, to_lowest: bool) -> Iterator[list[float]]:
    """Each schedule's levels, so many intervals from the highest to 0, or to the lowest level."""
    least, most = model.spec.sigma_min, model.spec.sigma_max
    for schedule in SCHEDULES.values():
        yield schedule(intervals + 1, least, most)[:-1] if to_lowest else schedule(intervals, least, most)
    if model.own_levels is not None and not to_lowest:
        yield model.own_levels(intervals)


def schemes(model: Denoiser, solver: Solver, nfe: int, mean: Tensor | None = None) -> Iterator[Scheme]:
    """The solver on every grid that ``nfe`` evaluations pay for; with a ``mean``, its first step is analytical.

    A solver that evaluates twice a step ends at 0, where its last step is Euler's and costs one evaluation.
    """
    answers = nfe + (mean is not None)
    intervals = solver.steps(answers)
    for to_lowest in (False, True)[: 1 + solver.once_a_step]:
        for grid in grids(model, intervals, to_lowest):
            yield Scheme(solver, grid, answers, 0, mean)


def candidates(contest: Contest, mean: Tensor | None = None) -> list[Scheme]:
    model = contest.noises.network.model
    return [scheme for solver in FIXED for scheme in schemes(model, solver, contest.nfe, mean)]


def best_scheme(contest: Contest, afs: bool) -> Scheme:
    """The best of all, where ``afs`` says so also of those with an analytical first step."""
    every = candidates(contest) + (candidates(contest, contest.mean) if afs else [])
    plans = [trace(scheme) for scheme in every]
    return every[plans.index(contest.best(plans))]


def best_fixed(contest: Contest) -> Plan:
    return trace(best_scheme(contest, afs=True))
