"""Makes a Plan from a model, a solver and a number of evaluations, with a report of the fit."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from edge_sampler.calibration.afs import mean_images
from edge_sampler.calibration.candidates import aims_of, grid_of, make_candidate, noises_of, race, scheme_of
from edge_sampler.calibration.chosen_levels import choose, scout_of
from edge_sampler.calibration.derivatives import derivative_cost
from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.reference import cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import rms
from edge_sampler.calibration.refinement import iteration_cost, number_of_turns, refine, refine_over
from edge_sampler.calibration.rounding import LARGEST_WEIGHT, NOTHING, largest_weight, rounding_error, usable
from edge_sampler.calibration.scout import SCOUT
from edge_sampler.calibration.settings import CHOSEN, REFINED, REFINED_ERRORS, TARGETS, Settings
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.task import task_of
from edge_sampler.calibration.trace import trace
from edge_sampler.calibration.views import viewer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.models.spec import check_alike
from edge_sampler.models.unchanged import check_unchanged
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FitReport
from edge_sampler.runtime.plan import Plan

RIDGES = (1e-2, 1.0, 1e6)  # tried in turn, where rounding costs a fit more than it errs by itself


def calibrate(
    model: Denoiser,
    settings: Settings,
    progress: ProgressBars = silent,
    cache: Cache = NO_CACHE,
    towards: Denoiser | None = None,
) -> Plan:
    """The plan of ``settings.solver``, its γ fitted; a fixed solver on a fixed schedule costs no evaluation.

    Deterministic for a seed, on one machine. ``plan.report`` tells how it was fitted; of a fixed solver it is None.
    ``towards`` is whose fine trajectories and converged images are aimed at, where ``model`` is a worse one of it.
    Raises UserError where the plan is not usable, and where ``towards`` takes other inputs.
    """
    try:
        return usable(fitted(model, settings, progress, cache, towards))
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        raise UserError(
            f"{model.spec.name}'s answers leave no plan to compute ({error}): take another solver, or --schedule edm"
        ) from error


def fitted(
    model: Denoiser,
    settings: Settings,
    progress: ProgressBars = silent,
    cache: Cache = NO_CACHE,
    towards: Denoiser | None = None,
) -> Plan:
    """The plan of ``calibrate``, whatever it is worth: a study shows bad ones as well."""
    started = time.perf_counter()
    view = viewer(settings.refine_on, model)  # says at once what cannot be
    if towards is not None:
        check_alike(model.spec, towards.spec)
        check_unchanged(towards)
    check_unchanged(model)
    task = task_of(model, settings)
    solvers, schedule, target, afs = task.solvers, task.schedule, task.target, task.afs
    if not task.evaluates:
        if towards is not None:
            raise UserError(f"{solvers[0].name} at fixed noise levels is not fitted, and so aims at no model's images")
        return trace(scheme_of(solvers[0], grid_of(model, schedule), settings))

    noises = noises_of(model, settings)
    meter = noises.network.meter
    mean = mean_images(noises, cache, progress) if afs else None
    aims = noises if towards is None else aims_of(noises, model, towards, settings)
    if schedule == CHOSEN:
        choice = choose(aims, task.numbers, cache, progress, task.effort)
        grid, fine = choice.grid(mean, scout_of(solvers[0]) if len(solvers) == 1 else SCOUT), choice.fine
    else:
        grid = grid_of(model, schedule)
        every = [scheme_of(solver, grid, settings, mean) for solver in solvers]
        levels = {sigma for scheme in every for sigma in scheme.sigmas if sigma > 0}
        steps = settings.trajectory_steps
        with progress("fine trajectory", cost(len(levels), steps) * len(noises)) as meter.progress:
            fine = solution(aims, levels, steps, cache)

    schemes, compared = [scheme_of(solver, grid, settings, mean) for solver in solvers], dict[str, float]()
    if len(schemes) > 1:
        schemes = [scheme for scheme in schemes if has_table(scheme)]
        with progress("which solver", task.race_cost(len(noises.heldout))) as meter.progress:
            errors = race(schemes, noises, fine, cache)
        raced = zip(schemes, errors, strict=True)
        compared = {trace(scheme).solver: error for scheme, error in raced if np.isfinite(error)}
        schemes = [schemes[place] for place in np.argsort(errors, kind="stable")]
    ridges = [settings.ridge, *(one for one in RIDGES if one > settings.ridge and not settings.paper)]
    for scheme in schemes:  # the best, unless its fit turns out to be of no use
        for ridge in ridges:
            settings = replace(settings, ridge=ridge)
            spent = task.candidate_cost(scheme.solver, len(noises), len(noises.heldout))
            with progress(f"{scheme.solver.name}, {settings.nfe} evaluations", spent) as meter.progress:
                best = make_candidate(scheme, noises, fine, target, settings, cache, aims)
            if rounding_error(best.plan) <= max(best.rms_error, NOTHING):
                break
        if largest_weight(best.plan) <= LARGEST_WEIGHT:
            break
    plan, error, errors = best.plan, best.rms_error, [best.error]
    if task.iterations:
        power = REFINED_ERRORS[settings.refine_error]
        refined = refine(plan, noises, fine[0.0], task.iterations, cache, progress, view, power=power)
        plan, errors = refined.plan, list(refined.errors)
        error = rms(noises.heldout.sample(plan) - fine[0.0][noises.fitting :])
    report = FitReport(
        model=model.spec.title,
        fingerprint=model.spec.fingerprint,
        settings=asdict(settings),
        target=target,
        schedule=schedule,
        heldout=settings.heldout,
        heldout_rms_error=error,
        steps=best.steps,
        compared=compared or {best.plan.solver: best.error},
        refinement=tuple(errors),
        examples=examples_of(model),
        evaluations=int(total(np.array([meter.evaluations], float))[0]),
        seconds=round(time.perf_counter() - started, 2),
    )
    if settings.refine:
        return replace(plan, solver=plan.solver + REFINED, report=report)
    return replace(plan, solver=settings.solver if task.iterations else plan.solver, report=report)


def refit(
    model: Denoiser,
    evaluations: Sequence[Denoiser],
    plan: Plan,
    settings: Settings,
    progress: ProgressBars = silent,
    cache: Cache = NO_CACHE,
) -> Plan:
    """Refines a plan for a sampler whose evaluations differ from the model, such as a quantised one.

    Args:
        model: the model whose converged images are the aim.
        evaluations: [nfe] denoisers, one for each evaluation of the sampler.
        plan: the plan to start from.
        settings: ``fit_batch``, ``heldout``, ``seed`` and ``temperature`` of the noises; ``trajectory_steps``, of the
            converged images; ``refine``, the largest number of iterations; ``refine_on``. Others have no effect.
        progress: what shows how far it is: ``edge_sampler.models.progress.bar``, or by default nothing.
        cache: where results are kept; by default nowhere.

    Returns:
        A plan that is never worse on the held-out noises. Its report's ``refinement`` and error are those of
        ``evaluations``, before and after.

    Raises:
        UserError: if evaluations and model differ in data, conditions or noise levels, and if the plan weights answers
            by more than float32 holds.

    Examples:
        >>> from edge_sampler.calibration.calibrate import refit
        >>> settings = edge_sampler.Settings(nfe=3, fit_batch=8, heldout=8, refine=1)
        >>> refit(model, [model] * 3, plan, settings).solver
        'ddim-refined'
    """
    started, view, noises = time.perf_counter(), viewer(settings.refine_on, model), noises_of(model, settings)
    steps, meter = settings.trajectory_steps, noises.network.meter
    with progress("converged solution", cost(1, steps) * len(noises)) as meter.progress:
        goal = solution(noises, [model.spec.sigma_max], steps, cache)[0.0]
    refined = refine_over(evaluations, plan, noises, goal, settings.refine, cache, progress, view)
    heldout = noises.over(evaluations).heldout
    error = rms(heldout.sample(refined.plan) - goal[noises.fitting :])
    report = FitReport(
        model=model.spec.title,
        fingerprint=model.spec.fingerprint,
        settings=asdict(settings),
        target=plan.report.target if plan.report else TARGETS[0],
        schedule=plan.report.schedule if plan.report else model.spec.schedule,
        heldout=settings.heldout,
        heldout_rms_error=error,
        steps=plan.report.steps if plan.report else (),
        compared=plan.report.compared if plan.report else {},
        refinement=refined.errors,
        examples=examples_of(model),
        evaluations=int(total(np.array([meter.evaluations], float))[0]),
        seconds=round(time.perf_counter() - started, 2),
    )
    return usable(replace(refined.plan, solver=plan.solver.removesuffix(REFINED) + REFINED, report=report))


def refit_cost(plan: Plan, settings: Settings) -> tuple[int, int]:
    """Evaluations of one sample that ``refit`` takes at the most: of the model, and of those that differ from it."""
    fitting, heldout = settings.fit_batch, settings.heldout
    entries = [len(row) for row in plan.table[:-1]]
    derived = derivative_cost(entries) * fitting
    answers = iteration_cost(entries, fitting, heldout, number_of_turns(fitting), differ=True) - derived
    exact = cost(1, settings.trajectory_steps) * (fitting + heldout) + settings.refine * derived
    return exact, settings.refine * answers + 2 * plan.nfe * heldout


def has_table(scheme: Scheme) -> bool:
    """Whether its numbers can be computed; they cannot where two levels are as good as one."""
    try:
        trace(scheme)
    except ArithmeticError:
        return False
    return True


def examples_of(model: Denoiser) -> tuple[int, ...]:
    """How many examples of the conditions a fit is made on, and how many others judge it; () where it has no rows."""
    if callable(model.examples) or not set(model.examples) & set(model.spec.called_with.conditions):
        return ()
    fitted, held = model.rows(False), model.rows(True)
    return fitted[1], (held[1] - held[0]) * (held != fitted)
