"""A model, a solver and a number of evaluations in; a Plan out, with a report of how it was fitted."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from calibration.afs import mean_image
from calibration.cache import NO_CACHE, Cache, digest
from calibration.distributed import processes, total
from calibration.fit import RIDGE, FittedStep, Target, fit, mean_error, rms
from calibration.grid import Grid, choose
from calibration.network import Network
from calibration.noises import Noises, to_fit, to_judge
from calibration.reference import REFERENCE_STEPS, cost, local_target, solution
from calibration.refine import VIEWS, refine, viewer
from calibration.schedules import SCHEDULES
from calibration.solvers import find
from calibration.solvers.base import Scheme, Solver, base_step
from calibration.trace import AFS, trace
from models.denoiser import Denoiser
from models.progress import ProgressBars, silent
from runtime.errors import UserError
from runtime.plan import Plan, sample

TARGETS = ("local", "global")
REFINED = "-refined"  # ends the name of a solver whose plan is refined
CHOSEN = "chosen"  # the schedule that is measured, calibration/grid.py
AUTO = ("iia-ipndm", "iia-ddim", "iia-dpmpp-2m", "ipndm")  # the best on chosen levels, docs/study.md


@dataclass(frozen=True)
class Settings:
    """What to calibrate. Raises UserError for a value out of range.

    Args:
        nfe: network evaluations, exactly.
        solver: a name of ``ALL_SOLVERS``, or "auto": whichever measures best for this model and nfe.
        schedule: a name of ``SCHEDULES``, or "chosen": the levels between which this model's steps err least. None:
            edm, and chosen for "auto".
        target: "local" is the paper's (fine steps from the coarse state); "global" aims at the fine trajectory from
            the same noise, so that a step also repairs what earlier ones left. None: local, and global for "auto".
        history: the paper's r; None is each solver's own (0 for biia-edm, 1 for the others).
        fine_steps: the paper's M, steps that the target cuts an interval into.
        batch: the paper's |B|, noises to fit on; ``heldout`` more judge every step and the choice of solver.
        ridge: relative weight of the pull toward the base solver. 1e-4 costs no accuracy against less and halves the
            largest γ, and with it float32's rounding, where past gradients hardly differ.
        seed: of the noises, and of the classes where the model has some.
        afs: whether the first step is analytical (calibration/afs.py), which saves an evaluation for one step more.
            None: for "auto" alone, unless images are of several classes, whose one mean is a poor answer.
        refine: iterations of joint refinement after the fit, at the most; 0: none.
        refine_on: one of ``VIEWS``: the error of pixels, or of a classifier's features (28×28 images alone).
    """

    nfe: int
    solver: str = "auto"
    schedule: str | None = None
    target: str | None = None
    history: int | None = None
    fine_steps: int = 10
    batch: int = 256
    heldout: int = 128
    ridge: float = RIDGE
    seed: int = 0
    afs: bool | None = None
    refine: int = 0
    refine_on: str = "pixels"

    def __post_init__(self) -> None:
        if self.solver != "auto":
            find(self.solver)
        for name, least in (
            ("nfe", 1),
            ("fine_steps", 2),
            ("batch", 1),
            ("heldout", 1),
            ("ridge", 0),
            ("seed", 0),
            ("refine", 0),
        ):
            if not getattr(self, name) >= least:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        for name in ("batch", "heldout"):
            if getattr(self, name) < processes():
                raise UserError(
                    f"{name} is {getattr(self, name)}: {processes()} processes need one noise each, or more"
                )
        if self.schedule not in (*SCHEDULES, CHOSEN, None):
            raise UserError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}, {CHOSEN}")
        if self.target not in (*TARGETS, None):
            raise UserError(f"unknown target {self.target!r}; known: {', '.join(TARGETS)}")
        if self.refine_on not in VIEWS:
            raise UserError(f"unknown refine-on {self.refine_on!r}; known: {', '.join(VIEWS)}")
        if self.history is not None and not 0 <= self.history < self.nfe:
            raise UserError(f"history is {self.history}; with nfe {self.nfe} it may be 0 to {self.nfe - 1}")

    @property
    def sampler(self) -> str:
        """What the plan's solver is called; "auto" until it is known which one that is."""
        name = self.solver if self.solver == "auto" else find(self.solver).name
        return name + AFS * bool(self.afs) + REFINED * bool(self.refine)


@dataclass(frozen=True)
class Candidate:
    """A solver made ready: its plan, and its final images' errors on the held-out noises.

    ``error`` is the mean of each image's RMS error, which a few do not decide: the least is the best.
    """

    plan: Plan
    error: float
    rms_error: float
    steps: tuple[FittedStep, ...]


def calibrate(model: Denoiser, settings: Settings, progress: ProgressBars = silent, cache: Cache = NO_CACHE) -> Plan:
    """The plan of ``settings.solver``, its γ fitted; a fixed solver on a fixed schedule costs no evaluation.

    Deterministic for a seed, on one machine. ``plan.calibration`` is the report: settings, per-step γ and errors, final
    error, what "auto" compared, refinement's errors, network evaluations (of one image) spent, seconds.
    """
    started = time.perf_counter()
    viewer(settings.refine_on, model.spec.shape)  # says at once what cannot be
    auto = settings.solver == "auto"
    solvers = [find(name) for name in (AUTO if auto else [settings.solver])]
    schedule = settings.schedule or (CHOSEN if auto else "edm")
    target = settings.target or ("global" if auto else "local")
    afs = auto and not model.spec.classes if settings.afs is None else settings.afs
    if not auto and solvers[0].history is None and schedule != CHOSEN and not afs and not settings.refine:
        return trace(scheme_of(solvers[0], grid_of(model, schedule), settings))

    noises = noises_of(model, settings)
    meter = noises.network.meter
    steps = max(REFERENCE_STEPS, settings.fine_steps * settings.nfe)
    mean = mean_image(noises, cache, progress) if afs else None
    if schedule == CHOSEN:
        numbers = [solver.steps(settings.nfe + afs) for solver in solvers]
        grids, fine = choose(noises, numbers, steps, cache, progress)
    else:
        grids = [grid_of(model, schedule)]
        every = [scheme_of(solver, grids[0], settings, mean) for solver in solvers]
        levels = {sigma for scheme in every for sigma in scheme.sigmas if sigma > 0}
        with progress("fine trajectory", cost(len(levels), steps) * len(noises)) as meter.progress:
            fine = solution(noises, levels, steps, cache)

    candidates = []
    for solver in solvers:
        fits = solver.history is not None
        images = len(noises if fits else noises.heldout)
        spent = settings.nfe * (1 + settings.fine_steps * (fits and target == "local")) * images
        with progress(f"{solver.name}, {settings.nfe} evaluations", spent * len(grids)) as meter.progress:
            candidates.append(best_candidate(solver, grids, noises, fine, target, settings, cache, mean))
    best = min(candidates, key=lambda candidate: candidate.error)
    plan, error, errors = best.plan, best.rms_error, [best.error]
    if settings.refine:
        refined = refine(plan, noises, fine[0.0], settings.refine, cache, progress, settings.refine_on)
        plan, errors = refined.plan, list(refined.errors)
        error = rms(sample(noises.heldout.network, noises.heldout.noise, plan) - fine[0.0][noises.fitting :])
    report = {
        **fitted_to(model),
        "settings": asdict(settings),
        "target": target,
        "schedule": schedule,
        "heldout_rms_error": error,
        "steps": [asdict(step) for step in best.steps],
        "compared": {candidate.plan.solver: candidate.error for candidate in candidates},
        "refinement": errors,
        "evaluations": int(total(np.array([meter.evaluations], float))[0]),
        "seconds": round(time.perf_counter() - started, 2),
    }
    return replace(plan, solver=plan.solver + REFINED * bool(settings.refine), calibration=report)


def fitted_to(model: Denoiser) -> dict[str, Any]:
    """What a fit belongs to."""
    spec = model.spec
    return {"weights_sha256": spec.weights_sha256, "class_label": spec.class_label, "guidance": spec.guidance}


def noises_of(model: Denoiser, settings: Settings) -> Noises:
    """Those to fit on."""
    return to_fit(model, settings.batch, settings.heldout, settings.seed)


def grid_of(model: Denoiser, schedule: str) -> Grid:
    """The grids of one of ``SCHEDULES``, within the model's range."""
    return lambda steps: SCHEDULES[schedule](steps, model.spec.sigma_min, model.spec.sigma_max)


def scheme_of(solver: Solver, grid: Grid, settings: Settings, mean: Tensor | None = None) -> Scheme:
    """The solver on the noise levels that ``settings.nfe`` evaluations pay for, one more with a ``mean`` for AFS."""
    history = solver.history if settings.history is None or solver.history is None else settings.history
    answers = settings.nfe + (mean is not None)
    return Scheme(solver, grid(solver.steps(answers)), answers, history or 0, mean)


def local_targets(scheme: Scheme, network: Network, fine_steps: int) -> Target:
    """Step i aims at where the solver itself goes from the coarse state, in fine steps: the paper's target."""
    return lambda index, state: local_target(
        scheme.solver, network, state, scheme.sigmas[index], scheme.sigmas[index + 1], fine_steps
    )


def make_candidate(
    scheme: Scheme,
    noises: Noises,
    fine: Mapping[float, Tensor],
    target: str,
    settings: Settings,
    cache: Cache = NO_CACHE,
) -> Candidate:
    """Fits the scheme, where it can be fitted, and measures its final images on the held-out noises.

    ``fine`` has the same-noise solution at each of its noise levels: what the global target aims at.
    """
    goals = [fine[sigma] for sigma in scheme.sigmas[1:]]

    def fitted() -> dict[str, np.ndarray]:
        """Errors of the images, and by each step's place its errors and γ."""
        steps: list[FittedStep] = []
        x, heldout = scheme.sigmas[0] * noises.noise, slice(noises.fitting, None)
        if scheme.solver.history is None:
            images = scheme.run(noises.heldout.network, x[heldout], base_step)
        else:
            aims: Target = lambda index, state: goals[index]  # noqa: E731
            if target == "local":
                aims = local_targets(scheme, noises.network, settings.fine_steps)
            steps, images = fit(scheme, noises.network, x, aims, noises.fitting, settings.ridge)
            images = images[heldout]
        wrong = images - goals[-1][heldout]
        each = {str(i): np.array([step.error_before, step.error_after, *step.gamma]) for i, step in enumerate(steps)}
        return {"errors": np.array([mean_error(wrong), rms(wrong)]), **each}

    key = {
        "fit": noises.key,
        "fitting": noises.fitting,
        "scheme": [scheme.solver.name, list(scheme.sigmas), scheme.nfe, scheme.history],
        "target": [target, settings.fine_steps, settings.ridge, *map(digest, goals)],
    }
    if scheme.mean is not None:
        key["mean"] = digest(scheme.mean)
    kept = cache.recall_together(key, fitted)
    error, rms_error = kept.pop("errors").tolist()
    steps = []
    for before, after, *gamma in (kept[str(i)].tolist() for i in range(len(kept))):
        steps.append(FittedStep(tuple(gamma), before, after))
    return Candidate(trace(scheme, [step.gamma for step in steps]), error, rms_error, tuple(steps))


def best_candidate(
    solver: Solver,
    grids: Sequence[Grid],
    noises: Noises,
    fine: Mapping[float, Tensor],
    target: str,
    settings: Settings,
    cache: Cache = NO_CACHE,
    mean: Tensor | None = None,
) -> Candidate:
    """The solver on whichever of the grids its final images err least; with a ``mean``, by AFS."""
    schemes = [scheme_of(solver, grid, settings, mean) for grid in grids]
    candidates = [make_candidate(scheme, noises, fine, target, settings, cache) for scheme in schemes]
    return min(candidates, key=lambda candidate: candidate.error)


def error_against_converged(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> float:
    """RMS over pixels of ``count`` images between the plan's and the converged solution from the same noises."""
    noises = to_judge(model, count)
    spent = (cost(1, REFERENCE_STEPS) + plan.nfe) * count
    with progress("converged solution", spent) as noises.network.meter.progress:
        fine = solution(noises, [model.spec.sigma_max], REFERENCE_STEPS, cache)
        return rms(sample(noises.network, noises.noise, plan) - fine[0.0])
