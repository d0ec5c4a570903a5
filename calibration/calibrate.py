"""A model, a solver and a number of evaluations in; a Plan out, with a report of how it was fitted."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from calibration.fit import FittedStep, Target, fit, rms
from calibration.network import Network
from calibration.reference import REFERENCE_STEPS, cost, local_target, trajectory
from calibration.schedules import SCHEDULES
from calibration.solvers import ALL_SOLVERS, find
from calibration.solvers.base import Solver, base_step
from calibration.trace import trace
from models.precond import Denoiser
from models.progress import ProgressBars, silent
from runtime.errors import UserError
from runtime.noise import unit_noise
from runtime.plan import Plan, sample

CALIBRATION_STREAM, CHECK_STREAM = 1, 2  # of noise: neither is ever sampled
TARGETS = ("local", "global")


@dataclass(frozen=True)
class Settings:
    """What to calibrate. Raises UserError for a value out of range.

    Args:
        nfe: network evaluations, exactly.
        solver: a name of ``ALL_SOLVERS``, or "auto": whichever measures best for this model and nfe.
        schedule: a name of ``SCHEDULES``.
        target: "local" is the paper's (fine steps from the coarse state); "global" aims at the fine trajectory from
            the same noise, so that a step also repairs what earlier ones left. None: local, and global for "auto".
        history: the paper's r; None is each solver's own (0 for biia-edm, 1 for the others).
        fine_steps: the paper's M, steps that the target cuts an interval into.
        batch: the paper's |B|, noises to fit on; ``heldout`` more judge every step and the choice of solver.
        ridge: relative weight of the pull toward the base solver. 1e-4 costs no accuracy against less and halves the
            largest γ, and with it float32's rounding, where past gradients hardly differ.
        seed: of the noises, and of the classes where the model has some.
    """

    nfe: int
    solver: str = "auto"
    schedule: str = "edm"
    target: str | None = None
    history: int | None = None
    fine_steps: int = 10
    batch: int = 256
    heldout: int = 128
    ridge: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver != "auto":
            find(self.solver)
        for name, least in (("nfe", 1), ("fine_steps", 2), ("batch", 1), ("heldout", 1), ("ridge", 0), ("seed", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name.replace('_', '-')} is {getattr(self, name)}; it must be at least {least}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")
        if self.target not in (*TARGETS, None):
            raise UserError(f"unknown target {self.target!r}; known: {', '.join(TARGETS)}")
        if self.history is not None and not 0 <= self.history < self.nfe:
            raise UserError(f"history is {self.history}; with nfe {self.nfe} it may be 0 to {self.nfe - 1}")


@dataclass(frozen=True)
class Candidate:
    """A solver made ready: its plan, and its final images' RMS error on the held-out noises."""

    plan: Plan
    error: float
    steps: tuple[FittedStep, ...]


def calibrate(model: Denoiser, settings: Settings, progress: ProgressBars = silent) -> Plan:
    """The plan of ``settings.solver``, its γ fitted; a fixed solver costs no evaluation.

    Deterministic for a seed, on one machine. ``plan.calibration`` is the report: settings, per-step γ and errors, final
    error, what "auto" compared, network evaluations (of one image) spent, seconds.
    """
    started = time.perf_counter()
    if settings.solver != "auto" and find(settings.solver).history is None:
        solver = find(settings.solver)
        return trace(solver, grid(model, solver, settings), settings.nfe)

    solvers = ALL_SOLVERS if settings.solver == "auto" else (find(settings.solver),)
    target = settings.target or ("global" if settings.solver == "auto" else "local")
    grids = {solver.name: grid(model, solver, settings) for solver in solvers}
    count = settings.batch + settings.heldout
    network, noise = noises(model, count, settings.seed, CALIBRATION_STREAM)
    x = noise * grids[solvers[0].name][0]

    levels = {sigma for sigmas in grids.values() for sigma in sigmas if sigma > 0}
    steps = max(REFERENCE_STEPS, settings.fine_steps * max(len(sigmas) - 1 for sigmas in grids.values()))
    with progress("reference trajectory", cost(len(levels), steps) * count) as network.progress:
        fine = trajectory(network, x, levels, steps)

    candidates = []
    for solver in solvers:
        local = target == "local" and solver.history is not None
        spent = settings.nfe * (1 + settings.fine_steps if local else 1)
        with progress(f"{solver.name}, {settings.nfe} evaluations", spent * count) as network.progress:
            candidates.append(_candidate(solver, network, x, grids[solver.name], settings, target, fine))
    best = min(candidates, key=lambda candidate: candidate.error)
    report = {
        "weights_sha256": model.spec.weights_sha256,
        "settings": asdict(settings),
        "target": target,
        "heldout_rms_error": best.error,
        "steps": [asdict(step) for step in best.steps],
        "compared": {candidate.plan.solver: candidate.error for candidate in candidates},
        "evaluations": network.evaluations,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return Plan(best.plan.solver, best.plan.sigmas, best.plan.table, report)


def grid(model: Denoiser, solver: Solver, settings: Settings) -> list[float]:
    """The noise levels that ``settings.nfe`` evaluations of ``solver`` pay for."""
    return SCHEDULES[settings.schedule](solver.steps(settings.nfe), model.spec.sigma_min, model.spec.sigma_max)


def noises(model: Denoiser, count: int, seed: int, stream: int) -> tuple[Network, Tensor]:
    """The network, holding a class for each image where the model has classes, and unit noise float64 [count, …]."""
    device = next(model.parameters()).device
    seeds = range(seed * count, (seed + 1) * count)
    noise = torch.from_numpy(unit_noise(seeds, model.spec.shape, stream)).double().to(device)
    labels = None
    if model.spec.classes:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(model.spec.classes, (count,), generator=generator).to(device)
    return Network(model, labels), noise


def _candidate(
    solver: Solver,
    network: Network,
    x: Tensor,
    sigmas: Sequence[float],
    settings: Settings,
    target: str,
    fine: dict[float, Tensor],
) -> Candidate:
    converged = fine[0.0][settings.batch :]
    if solver.history is None:
        images = solver.run(network, x, sigmas, base_step, 0, settings.nfe)
        return Candidate(trace(solver, sigmas, settings.nfe), rms(images[settings.batch :] - converged), ())
    history = solver.history if settings.history is None else settings.history
    reach: Target
    if target == "global":
        reach = lambda index, state: fine[sigmas[index + 1]]  # noqa: E731
    else:
        reach = lambda index, state: local_target(  # noqa: E731
            solver, network, state, sigmas[index], sigmas[index + 1], settings.fine_steps
        )
    steps, images = fit(solver, network, x, sigmas, settings.nfe, history, reach, settings.batch, settings.ridge)
    plan = trace(solver, sigmas, settings.nfe, [step.gamma for step in steps], history)
    return Candidate(plan, rms(images[settings.batch :] - converged), tuple(steps))


def error_against_converged(model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent) -> float:
    """RMS over pixels of ``count`` images between the plan's and the converged solution from the same noises."""
    network, noise = noises(model, count, 0, CHECK_STREAM)
    with progress("converged solution", (cost(1, REFERENCE_STEPS) + plan.nfe) * count) as network.progress:
        fine = trajectory(network, noise * model.spec.sigma_max, [model.spec.sigma_max], REFERENCE_STEPS)
        return rms(sample(network, noise, plan) - fine[0.0])
