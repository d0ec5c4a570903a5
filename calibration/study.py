"""Measures every solver at every number of evaluations on noises that no fit has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from calibration import frechet
from calibration.afs import mean_image
from calibration.cache import Cache, digest
from calibration.calibrate import AUTO, Candidate, Settings, best_candidate, grid_of, noises_of, scheme_of
from calibration.distributed import gathered, total
from calibration.fit import FittedStep, image_errors, rms
from calibration.grid import Grid, choose
from calibration.noises import Noises, to_judge
from calibration.reference import REFERENCE_STEPS, cost, solution
from calibration.refine import refine, viewer
from calibration.solvers.base import Solver
from calibration.trace import trace
from models import classifier
from models.denoiser import Denoiser
from models.progress import ProgressBars, silent
from runtime.errors import UserError
from runtime.plan import Plan, sample

RESAMPLES = 1000  # of the bootstrap
TRIMMED = 0.01  # of the images, the worst, are left out of one measure
SHOWN = 8  # images of each sampler that are kept for the picture
CONVERGED = 0.003  # RMS change of an image of the reference when its steps double, or less
MOST_STEPS = 2048  # that it may take
ON_CHOSEN = " on a chosen grid"
WITH_AFS = ", with AFS"
KINDS = ("fixed", "fitted", "fixed" + ON_CHOSEN, "fitted" + ON_CHOSEN, "fitted" + ON_CHOSEN + WITH_AFS, "refined")


@dataclass(frozen=True)
class Row:
    """One sampler at one NFE: RMSE of its images against the converged ones, a 95 % bootstrap interval, FD-fashion.

    ``trimmed`` is the RMSE without that part ``TRIMMED`` of the images which err most, ``median`` the median of the
    images' own RMSE.

    ``kind`` is one of ``KINDS``: fixed, or γ fitted by least squares to the global target, on EDM's grid or a chosen
    one, there with an analytical first step too; or refined. ``steps`` are the RMS errors after each step on the fit's
    held-out noises, before and after γ; ``fd`` is None where there are no features.
    """

    solver: str
    kind: str
    nfe: int
    rmse: float
    low: float
    high: float
    trimmed: float
    median: float
    fd: float | None
    plan: Plan
    steps: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Study:
    """``convergence`` is the RMS change of the reference when its steps double, ``unsettled`` how many of its images
    still change by more than ``CONVERGED``, ``reference_fd`` its own distance.

    ``pictures`` has the first images of each row, and of the reference, by "SOLVER NFE" and "reference".
    """

    model: str
    settings: Settings
    judged: int
    convergence: float
    unsettled: int
    reference_fd: float | None
    rows: tuple[Row, ...]
    pictures: Mapping[str, np.ndarray]

    def best(self, kind: str, nfe: int, measure: str = "rmse") -> Row:
        """The row of that kind and NFE with the least ``measure``, an error among the fields of ``Row``."""
        rows = (row for row in self.rows if row.kind == kind and row.nfe == nfe)
        return min(rows, key=lambda row: float(getattr(row, measure)))

    def kinds(self, nfe: int) -> list[str]:
        """Those that were measured at ``nfe``."""
        return [kind for kind in KINDS if any(row.kind == kind and row.nfe == nfe for row in self.rows)]


@dataclass(frozen=True)
class Judge:
    """Noises, the images they should become, and the classifier that sees 28×28 ones.

    ``moved`` [n] is the RMS change of each image of the goal when its steps last doubled.
    """

    noises: Noises
    goal: torch.Tensor
    moved: torch.Tensor
    seer: classifier.Classifier | None
    real: classifier.Statistics | None
    cache: Cache

    def row(self, plan: Plan, kind: str, fitted: Sequence[FittedStep]) -> tuple[Row, np.ndarray]:
        parts = [
            self.cache.recall(
                {"judged": block.key, "plan": plan.sha256, "goal": digest(self.goal[images])},
                partial(self._block, block, images, plan),
            )
            for images, block in self.noises.blocks()
        ]
        errors = gathered(np.concatenate([part["errors"] for part in parts]))
        draws = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
        low, high = np.sqrt(np.percentile(errors[draws].mean(1), [2.5, 97.5]))
        fd = self.distance(gathered(np.concatenate([part["features"] for part in parts])))
        steps = tuple((step.error_before, step.error_after) for step in fitted)
        most = np.sort(errors)[: len(errors) - int(TRIMMED * len(errors))]
        rmse, trimmed, median = (float(np.sqrt(mean)) for mean in (errors.mean(), most.mean(), np.median(errors)))
        row = Row(plan.solver, kind, plan.nfe, rmse, float(low), float(high), trimmed, median, fd, plan, steps)
        return row, parts[0]["shown"]

    def check(self, least: float) -> None:
        """Raises UserError when the reference is too far from converged to have measured an error of ``least``.

        At second order it falls fourfold when steps double, so that a third of the last move is left.
        """
        if not self.convergence / 3 < 0.5 * least:
            raise UserError(
                f"the reference still moves by {self.convergence:.2g} when its steps double, too much to measure "
                f"errors of {least:.2g} by: the model's trajectories do not converge"
            )

    @property
    def convergence(self) -> float:
        return rms(self.moved)

    @property
    def unsettled(self) -> int:
        return int(total(np.array([(self.moved > CONVERGED).sum().item()], float))[0])

    def _block(self, block: Noises, which: slice, plan: Plan) -> dict[str, np.ndarray]:
        images = sample(block.network, block.noise, plan)
        errors = (images - self.goal[which]).square().flatten(1).mean(1)
        return {
            "errors": errors.cpu().numpy(),
            "features": self.features(images),
            "shown": images[:SHOWN].float().cpu().numpy(),
        }

    def features(self, images: torch.Tensor) -> np.ndarray:
        if self.seer is None:
            return np.zeros((len(images), 0), np.float32)
        return classifier.features(self.seer, images.cpu()).numpy()

    def distance(self, features: np.ndarray) -> float | None:
        if self.real is None:
            return None
        return frechet.distance(classifier.statistics(torch.from_numpy(features)), self.real)


def judging(model: Denoiser, count: int, cache: Cache, progress: ProgressBars) -> Judge:
    """``count`` noises that no fit sees, solved."""
    noises = to_judge(model, count)
    goal, moved = converged(noises, cache, progress)
    seer, real = classifier.load() if model.spec.shape == classifier.SHAPE else (None, None)
    return Judge(noises, goal, moved, seer, real, cache)


def reference(noises: Noises, steps: int, cache: Cache, progress: ProgressBars) -> torch.Tensor:
    """Images [n, …] of the noises, by so many steps of ``REFERENCE``, calibration/reference.py."""
    title = f"reference, {len(noises)} noises, {steps} steps"
    with progress(title, cost(1, steps) * len(noises)) as noises.network.meter.progress:
        return solution(noises, [noises.network.model.spec.sigma_max], steps, cache)[0.0]


def converged(noises: Noises, cache: Cache, progress: ProgressBars) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, …], each of as many steps as it takes to change by ``CONVERGED`` or less, and that change [n], by RMS.

    Of ``MOST_STEPS`` where that takes more. A few noises, near where trajectories part, need many times the steps of
    the others.
    """
    steps, moving = REFERENCE_STEPS // 2, list(range(len(noises)))
    images = reference(noises, steps, cache, progress)
    moved = torch.full((len(noises),), torch.inf, dtype=images.dtype, device=images.device)
    while moving and steps < MOST_STEPS:
        steps *= 2
        finer = reference(noises.some(moving), steps, cache, progress)
        moved[moving], images[moving] = image_errors(finer - images[moving]), finer
        moving = [place for place in moving if moved[place] > CONVERGED]
    return images, moved


def study(
    model: Denoiser,
    solvers: Sequence[Solver],
    nfes: Sequence[int],
    refined: Sequence[int],
    settings: Settings,
    judged: int,
    cache: Cache,
    progress: ProgressBars = silent,
) -> Study:
    """Each of ``solvers`` at each of ``nfes``, and at those of ``refined`` the best fit refined as well.

    ``settings`` says what to fit on; its solver and NFE do not matter. Everything is kept in ``cache``. Raises
    UserError unless there are fixed and fitted solvers, and when the reference does not converge.
    """
    fitted = [solver for solver in solvers if solver.history is not None]
    if len(fitted) in (0, len(solvers)):
        names = ", ".join(solver.name for solver in solvers)
        raise UserError(f"solvers are {names}: a study compares fitted ones with fixed ones; name one of each, or more")
    viewer(settings.refine_on, model.spec.shape)  # says at once what cannot be
    every = [replace(settings, nfe=nfe, target="global", history=None) for nfe in nfes]
    edm = grid_of(model, "edm")
    levels = {sigma for s in every for solver in solvers for sigma in scheme_of(solver, edm, s).sigmas if sigma > 0}
    noises = noises_of(model, settings)
    with progress("EDM's levels", cost(len(levels), REFERENCE_STEPS) * len(noises)) as noises.network.meter.progress:
        fine = solution(noises, levels, REFERENCE_STEPS, cache)
    with_afs = [solver for solver in fitted if solver.name in AUTO]
    numbers = {solver.steps(nfe) for solver in solvers for nfe in nfes}
    numbers |= {solver.steps(nfe + 1) for solver in with_afs for nfe in nfes}
    grids, finer = choose(noises, numbers, REFERENCE_STEPS, cache, progress)
    fine = {**fine, **finer}
    mean = mean_image(noises, cache, progress)

    judge = judging(model, judged, cache, progress)
    meter = judge.noises.network.meter
    rows: list[Row] = []
    pictures = {"reference": judge.goal[:SHOWN].float().cpu().numpy()}

    def measure(plan: Plan, kind: str, steps: Sequence[FittedStep] = ()) -> None:
        row, shown = judge.row(plan, kind, steps)
        rows.append(row)
        pictures[f"{row.solver} {row.nfe}"] = shown

    entrants: list[tuple[Solver, Sequence[Grid], torch.Tensor | None, str]] = [
        *((solver, [edm], None, "") for solver in solvers),
        *((solver, grids, None, ON_CHOSEN) for solver in solvers),
        *((solver, grids, mean, ON_CHOSEN + WITH_AFS) for solver in with_afs),
    ]
    for s in every:
        fits: list[Candidate] = []
        with progress(f"{s.nfe} evaluations", s.nfe * len(entrants) * len(judge.noises)) as meter.progress:
            for solver, tried, image, how in entrants:
                kind = ("fixed" if solver.history is None else "fitted") + how
                if kind == "fixed":
                    measure(trace(scheme_of(solver, edm, s)), kind)
                    continue
                fit = best_candidate(solver, tried, noises, fine, "global", s, cache, image)
                measure(named(fit.plan, bool(how)), kind, fit.steps)
                if solver.history is not None:
                    fits.append(fit)
        if s.nfe in refined:
            start = min(fits, key=lambda fit: fit.error).plan  # by the fit's own held-out noises
            last = refine(start, noises, fine[0.0], settings.refine, cache, progress, settings.refine_on).plan
            measure(replace(last, solver="refined", calibration={}), "refined")
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
    )


def named(plan: Plan, chosen: bool) -> Plan:
    return replace(plan, solver=plan.solver + "-chosen" * chosen, calibration={})
