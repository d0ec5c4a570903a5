"""Measures every solver, and its rivals, at every number of evaluations on noises that no fit has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch

from edge_sampler.calibration.afs import mean_images
from edge_sampler.calibration.candidates import Candidate, grid_of, make_candidate, noises_of, scheme_of
from edge_sampler.calibration.chosen_levels import Grid, choose, scout_of
from edge_sampler.calibration.evaluate.distributed import gathered
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.reference import States, cost, solution
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.refinement import refine
from edge_sampler.calibration.settings import AUTO, Settings
from edge_sampler.calibration.solvers.base import Solver
from edge_sampler.calibration.study.measure import SHOWN, Row, captions, judging
from edge_sampler.calibration.study.rivals.entry import BEST_FIXED, OURS, RIVAL, Rival, enter
from edge_sampler.calibration.trace import trace
from edge_sampler.calibration.views import viewer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FittedStep
from edge_sampler.runtime.plan import Plan

GIVEN = "given"  # a plan that somebody has
ON_CHOSEN = " on a chosen grid"
WITH_AFS = ", with AFS"
SOLVED = ("fixed", "fitted", "fixed" + ON_CHOSEN, "fitted" + ON_CHOSEN, "fitted" + ON_CHOSEN + WITH_AFS, "refined")
KINDS = (BEST_FIXED, RIVAL, *SOLVED, OURS, GIVEN)


@dataclass(frozen=True)
class Study:
    """``convergence`` is the RMS change of the reference when its steps double, ``unsettled`` how many of its images
    still change by more than ``CONVERGED``, ``reference_fd`` its own distance.

    ``reference_judged`` is its FD, precision and recall by the second classifier.

    ``pictures`` has the first images of each row, and of the reference, by "SOLVER NFE" and "reference"; ``captions``
    what the model was told of them, where that is text.
    """

    model: str
    settings: Settings
    judged: int
    convergence: float
    unsettled: int
    reference_fd: float | None
    rows: tuple[Row, ...]
    pictures: Mapping[str, np.ndarray]
    captions: Sequence[str]
    reference_judged: tuple[float, float, float] | None = None

    def best(self, kind: str, nfe: int, measure: str = "rmse") -> Row:
        """The row of that kind and NFE with the least ``measure``, an error among the fields of ``Row``."""
        rows = (row for row in self.rows if row.kind == kind and row.nfe == nfe)
        return min(rows, key=lambda row: float(getattr(row, measure)))

    def rival(self, nfe: int, measure: str = "rmse") -> Row | None:
        """The best of what others do, fixed solvers at their best levels among them; None where none was measured."""
        kinds = [kind for kind in (BEST_FIXED, RIVAL) if kind in self.kinds(nfe)]
        rows = (self.best(kind, nfe, measure) for kind in kinds)
        return min(rows, key=lambda row: float(getattr(row, measure)), default=None)

    def kinds(self, nfe: int) -> list[str]:
        """Those that were measured at ``nfe``."""
        return [kind for kind in KINDS if any(row.kind == kind and row.nfe == nfe for row in self.rows)]


def study(
    model: Denoiser,
    solvers: Sequence[Solver],
    rivals: Sequence[Rival],
    nfes: Sequence[int],
    refined: Sequence[int],
    settings: Settings,
    judged: int,
    cache: Cache,
    progress: ProgressBars = silent,
    given: Mapping[tuple[str, int], Plan] = MappingProxyType({}),
) -> Study:
    """Each of ``solvers`` at each of ``nfes``, and at those of ``refined`` the best fit refined as well.

    ``rivals`` are measured at those of ``refined``, the best fixed solver at all of ``nfes``. ``given`` are plans by
    name and NFE. ``settings`` says what to fit on; its solver and NFE do not matter. Everything is kept in ``cache``.
    Raises UserError unless there are fixed and fitted solvers, or none of them and rivals or plans, and when the
    reference does not converge.
    """
    fitted = [solver for solver in solvers if solver.history is not None]
    if len(fitted) in (0, len(solvers)) and (solvers or not (rivals or given)):
        names = ", ".join(solver.name for solver in solvers) or "none"
        raise UserError(f"solvers are {names}: a study compares fitted ones with fixed ones; name one of each, or more")
    if not solvers and not refined and not given and all(rival.kind != BEST_FIXED for rival in rivals):
        raise UserError("nothing to measure: rivals but best-fixed are fitted at the NFE of --refined, and it has none")
    view = viewer(settings.refine_on, model)  # says at once what cannot be
    every = [replace(settings, nfe=nfe, fit_target="global", history=None) for nfe in nfes]
    noises = noises_of(model, settings)
    entrants = prepared(noises, solvers, every, cache, progress) if solvers else []

    judge = judging(model, judged, cache, progress)
    meter = judge.noises.network.meter
    rows: list[Row] = []
    pictures = {"reference": judge.goal[:SHOWN].float().cpu().numpy()}

    def measure(plan: Plan, kind: str, steps: Sequence[FittedStep] = ()) -> None:
        row, shown = judge.row(plan, kind, steps)
        rows.append(row)
        pictures[f"{row.solver} {row.nfe}"] = shown

    for s in every:
        for rival in rivals:
            if rival.kind == BEST_FIXED or s.nfe in refined:
                entry = enter(rival, noises, s, cache, progress)
                with progress(f"{rival.name}, {s.nfe} evaluations", s.nfe * len(judge.noises)) as meter.progress:
                    measure(entry.plan, rival.kind)
                rows[-1] = replace(rows[-1], of=entry.solver, evaluations=entry.evaluations, seconds=entry.seconds)
        for name in [name for name, nfe in given if nfe == s.nfe]:
            plan = given[name, s.nfe]
            with progress(f"{name}, {s.nfe} evaluations", s.nfe * len(judge.noises)) as meter.progress:
                measure(replace(plan, solver=name, report=None), GIVEN)
            spent = plan.report.evaluations if plan.report else None
            rows[-1] = replace(rows[-1], of=plan.solver, evaluations=spent)
        if not entrants:
            continue
        fits: list[tuple[Candidate, torch.Tensor]] = []  # and the images that each aims at
        with progress(f"{s.nfe} evaluations", s.nfe * len(entrants) * len(judge.noises)) as meter.progress:
            for entrant in entrants:
                kind = ("fixed" if entrant.solver.history is None else "fitted") + entrant.how
                scheme = scheme_of(entrant.solver, entrant.grid, s, entrant.mean)
                if kind == "fixed":
                    measure(trace(scheme), kind)
                    continue
                fit = make_candidate(scheme, noises, entrant.fine, "global", s, cache)
                measure(named(fit.plan, bool(entrant.how)), kind, fit.steps)
                if entrant.solver.history is not None:
                    fits.append((fit, entrant.fine[0.0]))
        if s.nfe in refined:
            start, goal = min(fits, key=lambda fit: fit[0].error)  # by the fit's own held-out noises
            last = refine(start.plan, noises, goal, settings.refine, cache, progress, view).plan
            measure(replace(last, solver="refined", report=None), "refined")
    judge.check(min(row.rmse for row in rows))
    return Study(
        model.spec.title,
        settings,
        judged,
        judge.convergence,
        judge.unsettled,
        judge.distance(gathered(judge.features(judge.goal))),
        tuple(rows),
        pictures,
        captions(model, len(pictures["reference"])),
        judge.reference_figures(),
    )


@dataclass(frozen=True)
class Entrant:
    """A solver, its grids and the fine solution there; what its kind adds, ``how``; and the mean, for AFS."""

    solver: Solver
    grid: Grid
    fine: States
    how: str = ""
    mean: torch.Tensor | None = None


def prepared(
    noises: Noises, solvers: Sequence[Solver], every: Sequence[Settings], cache: Cache, progress: ProgressBars
) -> list[Entrant]:
    """Each solver on the model's own grid and on chosen ones."""
    model = noises.network.model
    own = grid_of(model, model.spec.schedule)
    levels = {sigma for s in every for solver in solvers for sigma in scheme_of(solver, own, s).sigmas if sigma > 0}
    steps = every[0].reference_steps
    with progress("fine trajectory", cost(len(levels), steps) * len(noises)) as noises.network.meter.progress:
        fine = solution(noises, levels, steps, cache)
    with_afs = [solver for solver in solvers if solver.history is not None and solver.name in AUTO]
    numbers = {solver.steps(s.nfe) for solver in solvers for s in every}
    numbers |= {solver.steps(s.nfe + 1) for solver in with_afs for s in every}
    choice = choose(noises, numbers, cache, progress)
    mean = mean_images(noises, cache, progress) if with_afs else None
    plain = {scout.name: choice.grid(None, scout) for scout in map(scout_of, solvers)}
    analytical = choice.grid(mean)
    return [
        *(Entrant(solver, own, fine) for solver in solvers),
        *(Entrant(solver, plain[scout_of(solver).name], choice.fine, ON_CHOSEN) for solver in solvers),
        *(Entrant(solver, analytical, choice.fine, ON_CHOSEN + WITH_AFS, mean) for solver in with_afs),
    ]


def named(plan: Plan, chosen: bool) -> Plan:
    return replace(plan, solver=plan.solver + "-chosen" * chosen, report=None)
