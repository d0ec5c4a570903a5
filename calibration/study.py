"""Measures every solver at every number of evaluations on noises that no fit has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from calibration import frechet
from calibration.cache import Cache
from calibration.calibrate import Candidate, Settings, make_candidate, scheme_of
from calibration.noises import Noises, to_fit, to_judge
from calibration.reference import REFERENCE_STEPS, cost, solution
from calibration.refine import refine
from calibration.solvers import ALL_SOLVERS
from models import classifier
from models.precond import Denoiser
from models.progress import ProgressBars, silent
from runtime.errors import UserError
from runtime.plan import Plan, sample

RESAMPLES = 1000  # of the bootstrap
SHOWN = 8  # images of each sampler that are kept for the picture


@dataclass(frozen=True)
class Row:
    """One sampler at one NFE: RMSE of its images against the converged ones, a 95 % bootstrap interval, FD-fashion.

    ``kind`` is "fixed", "fitted" (γ by least squares, global target) or "refined". ``steps`` are the RMS errors after
    each step on the fit's held-out noises, before and after γ; ``fd`` is None where there are no features.
    """

    solver: str
    kind: str
    nfe: int
    rmse: float
    low: float
    high: float
    fd: float | None
    plan: Plan
    steps: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Study:
    """``convergence`` is the RMS change of the reference when its steps double, ``reference_fd`` its own distance.

    ``pictures`` has the first images of each row, and of the reference, by "SOLVER NFE" and "reference".
    """

    model: str
    settings: Settings
    judged: int
    convergence: float
    reference_fd: float | None
    rows: tuple[Row, ...]
    pictures: Mapping[str, np.ndarray]

    def best(self, kind: str, nfe: int) -> Row:
        return min((row for row in self.rows if row.kind == kind and row.nfe == nfe), key=lambda row: row.rmse)


@dataclass(frozen=True)
class Judge:
    """Noises, the images they should become, and the classifier that sees 28×28 ones."""

    noises: Noises
    goal: torch.Tensor
    seer: classifier.Classifier | None
    real: classifier.Statistics | None
    cache: Cache

    def row(self, plan: Plan, kind: str, candidate: Candidate | None = None) -> tuple[Row, np.ndarray]:
        parts = [
            self.cache.recall({"judged": block.key, "plan": plan.sha256}, partial(self._block, block, images, plan))
            for images, block in self.noises.blocks()
        ]
        errors = np.concatenate([part["errors"] for part in parts])
        draws = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
        low, high = np.sqrt(np.percentile(errors[draws].mean(1), [2.5, 97.5]))
        fd = self.distance(np.concatenate([part["features"] for part in parts]))
        steps = tuple((step.error_before, step.error_after) for step in candidate.steps) if candidate else ()
        rmse = float(np.sqrt(errors.mean()))
        return Row(plan.solver, kind, plan.nfe, rmse, float(low), float(high), fd, plan, steps), parts[0]["shown"]

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


def study(
    model: Denoiser,
    nfes: Sequence[int],
    refined: Sequence[int],
    settings: Settings,
    judged: int,
    cache: Cache,
    progress: ProgressBars = silent,
) -> Study:
    """Every solver at each of ``nfes``, and at those of ``refined`` the best fit refined as well.

    ``settings`` says what to fit on; its solver and NFE do not matter. Everything is kept in ``cache``. Raises
    UserError when the reference does not converge.
    """
    every = [replace(settings, nfe=nfe, target="global", history=None) for nfe in nfes]
    schemes = {(s.nfe, solver.name): scheme_of(model, solver, s) for s in every for solver in ALL_SOLVERS}
    levels = {sigma for scheme in schemes.values() for sigma in scheme.sigmas if sigma > 0}
    noises = to_fit(model, settings.batch, settings.heldout, settings.seed, settings.guidance)
    with progress("fine trajectory", cost(len(levels), REFERENCE_STEPS) * len(noises)) as noises.network.meter.progress:
        fine = solution(noises, levels, REFERENCE_STEPS, cache)

    judges = to_judge(model, judged, settings.guidance)
    top, meter = [model.spec.sigma_max], judges.network.meter
    spent = cost(1, REFERENCE_STEPS) + cost(1, 2 * REFERENCE_STEPS)
    with progress("reference, and twice its steps", spent * judged) as meter.progress:
        goal, finer = (solution(judges, top, steps, cache)[0.0] for steps in (REFERENCE_STEPS, 2 * REFERENCE_STEPS))
    convergence = (goal - finer).square().mean().sqrt().item()
    seer, real = classifier.load() if model.spec.shape == classifier.SHAPE else (None, None)
    judge = Judge(judges, finer, seer, real, cache)

    rows: list[Row] = []
    pictures = {"reference": finer[:SHOWN].float().cpu().numpy()}
    for s in every:
        with progress(f"{s.nfe} evaluations", s.nfe * len(ALL_SOLVERS) * judged) as meter.progress:
            candidates = [
                make_candidate(schemes[s.nfe, solver.name], noises, fine, "global", s) for solver in ALL_SOLVERS
            ]
            for solver, candidate in zip(ALL_SOLVERS, candidates, strict=True):
                row, shown = judge.row(candidate.plan, "fixed" if solver.history is None else "fitted", candidate)
                rows.append(row)
                pictures[f"{row.solver} {s.nfe}"] = shown
        if s.nfe in refined:
            start = min(candidates, key=lambda candidate: candidate.error).plan  # by the fit's own held-out noises
            last = refine(start, noises, fine[0.0], settings.refine, cache, progress).plan
            row, shown = judge.row(Plan("refined", last.sigmas, last.table), "refined")
            rows.append(row)
            pictures[f"refined {s.nfe}"] = shown
    best = min(row.rmse for row in rows)
    if not convergence < 0.5 * best:
        raise UserError(
            f"the reference moves by {convergence:.2g} when its {REFERENCE_STEPS} steps double, which is not far below "
            f"the errors that it should measure ({best:.2g}): the model's trajectories do not converge"
        )
    return Study(
        model.spec.name, settings, judged, convergence, judge.distance(judge.features(finer)), tuple(rows), pictures
    )
