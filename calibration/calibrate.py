"""A model, a solver and a number of evaluations in; a Plan out, with a report of how it was fitted."""

import time
from dataclasses import asdict, replace

import numpy as np

from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.candidates import best_candidate, grid_of, noises_of, scheme_of
from edge_sampler.calibration.chosen_levels import choose
from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import rms
from edge_sampler.calibration.refinement import refine, viewer
from edge_sampler.calibration.settings import AUTO, CHOSEN, REFINED, Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FitReport
from edge_sampler.runtime.plan import Plan, sample

LARGEST_WEIGHT = 1e5  # of an answer, which float32 then rounds by 0.006


def calibrate(model: Denoiser, settings: Settings, progress: ProgressBars = silent, cache: Cache = NO_CACHE) -> Plan:
    """The plan of ``settings.solver``, its γ fitted; a fixed solver on a fixed schedule costs no evaluation.

    Deterministic for a seed, on one machine. ``plan.report`` tells how it was fitted; of a fixed solver it is None.
    Raises UserError where the plan is not usable.
    """
    return usable(fitted(model, settings, progress, cache))


def fitted(model: Denoiser, settings: Settings, progress: ProgressBars = silent, cache: Cache = NO_CACHE) -> Plan:
    """The plan of ``calibrate``, whatever it is worth: a study shows bad ones as well."""
    started = time.perf_counter()
    viewer(settings.refine_on, model.spec.shape)  # says at once what cannot be
    auto = settings.solver == "auto"
    solvers = [find(name) for name in (AUTO if auto else [settings.solver])]
    schedule = settings.schedule or (CHOSEN if auto else model.spec.schedule)
    target = settings.target or ("global" if auto else "local")
    afs = auto and not model.spec.inputs.conditions if settings.afs is None else settings.afs
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
    report = FitReport(
        model=model.spec.title,
        fingerprint=model.spec.fingerprint,
        settings=asdict(settings),
        target=target,
        schedule=schedule,
        heldout=settings.heldout,
        heldout_rms_error=error,
        steps=best.steps,
        compared={candidate.plan.solver: candidate.error for candidate in candidates},
        refinement=tuple(errors),
        examples=examples_of(model),
        evaluations=int(total(np.array([meter.evaluations], float))[0]),
        seconds=round(time.perf_counter() - started, 2),
    )
    return replace(plan, solver=plan.solver + REFINED * bool(settings.refine), report=report)


def usable(plan: Plan) -> Plan:
    """The plan. Raises UserError where it weighs answers by so much that float32 loses what they say.

    So do solvers that average two slopes over a step from a flow's first level, σ = 1e7, to one of a few.
    """
    largest = max(abs(weight) for row in plan.table for weight in row[1:] or (0.0,))
    if largest > LARGEST_WEIGHT:
        raise UserError(
            f"{plan.solver} weighs the network's answers by up to {largest:.1e} on noise levels from "
            f"{max(plan.sigmas):.3g}, which float32 cannot hold: take another solver, such as ipndm, or --schedule edm "
            "and a lower highest level"
        )
    return plan


def examples_of(model: Denoiser) -> tuple[int, ...]:
    """How many examples of the conditions a fit is made on, and how many others judge it; () where it has no rows."""
    if callable(model.examples) or not model.examples:
        return ()
    return tuple(last - first for first, last in (model.rows(False), model.rows(True)))


def error_against_converged(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> float:
    """RMS over pixels of ``count`` images between the plan's and the converged solution from the same noises."""
    noises = to_judge(model, count)
    spent = (cost(1, REFERENCE_STEPS) + plan.nfe) * count
    with progress("converged solution", spent) as noises.network.meter.progress:
        fine = solution(noises, [model.spec.sigma_max], REFERENCE_STEPS, cache)
        return rms(sample(noises.network, noises.noise, plan) - fine[0.0])
