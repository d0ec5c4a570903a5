"""How far samplers end from the converged solution, on noises that no fit has seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.network import NotFiniteError
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import image_errors, rms
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.settings import OWN, Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.plan import Plan

USUAL = ("ddim", "dpmpp-2m", "ipndm")  # what people run without a fit
TRIED, FINAL = 4, 6  # noises on which each of them is tried on each schedule, and how many of these are tried on all


@dataclass(frozen=True)
class Judgement:
    """The errors of a sampler's images, and of fixed solvers' from the same noises at the same NFE.

    Args:
        noises: the number of noises.
        error: the sampler's RMS error against converged images, in the data's units.
        others: the same by solver, on the model's usual noise levels; and for the best of them on its best levels, with
            an analytical first step, from one mean of all data, if that helps.
        median: the sampler's RMS error in the median image. A few images whose paths part decide the RMS error of all.
        other_medians: the same of ``others``.

    Examples:
        >>> from edge_sampler.calibration.judge import Judgement
        >>> Judgement(128, 0.03, {"ddim": 0.2}, 0.01, {"ddim": 0.1}).record()["rms_error"]
        0.03
    """

    noises: int
    error: float
    others: dict[str, float]
    median: float
    other_medians: dict[str, float]

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values.
        """
        return {
            "noises": self.noises,
            "rms_error": self.error,
            "fixed_solvers": self.others,
            "median_error": self.median,
            "fixed_medians": self.other_medians,
        }


def judge(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> Judgement:
    """Measures the errors of a plan, and of DDIM, DPM-Solver++ (2M) and iPNDM, on noises that no fit has seen.

    Noises have the temperature of the plan's fit.

    These same noises choose the best levels for the best of the three, which makes its error look smaller.

    Args:
        model: the denoiser for which the plan was fitted.
        plan: the sampler.
        count: the number of noises.
        progress: what shows how far it is: ``edge_sampler.models.progress.bar``, or by default nothing.
        cache: where results are kept; by default nowhere.

    Returns:
        RMS errors against images of very many steps.

    Raises:
        NotFiniteError: a UserError, where the plan's images are not finite.

    Examples:
        >>> from edge_sampler.calibration.judge import judge
        >>> found = judge(model, plan, 4)
        >>> found.error == found.others["ddim on edm levels"], [*found.others][:2]
        (True, ['ddim on edm levels', 'dpmpp-2m on edm levels'])
    """
    noises, goal = converged(model, count, progress, cache, plan.temperature)
    fixed, few = fixed_plans(model, plan.nfe, noises), noises.first(TRIED)
    usual = [on_levels(solver, model.spec.schedule) for solver in USUAL]
    spent = plan.nfe * (len(fixed) * min(TRIED, count) + (1 + len(usual) + FINAL) * count)
    with progress("fixed solvers", spent) as noises.network.meter.progress:
        tried = {name: error_of(one, few, goal) for name, one in fixed.items()}
        final = sorted(tried, key=lambda name: tried[name] if np.isfinite(tried[name]) else np.inf)[:FINAL]
        errors = {name: errors_of(fixed[name], noises, goal) for name in dict.fromkeys([*usual, *final])}
        error, median = errors_of(plan, noises, goal)
    if not np.isfinite(error):
        raise NotFiniteError(f"{plan.solver} ends in NaN or infinity on noises that no fit has seen: fit another plan")
    known = {name: both for name, both in errors.items() if np.isfinite(both[0])}
    shown = {*usual, min(known, key=lambda name: known[name][0], default="")}
    others = {name: known[name][0] for name in known if name in shown}
    return Judgement(count, error, others, median, {name: known[name][1] for name in others})


def fixed_plans(model: Denoiser, nfe: int, noises: Noises) -> dict[str, Plan]:
    """The usual solvers on every schedule, the model's usual one first, with and without an analytical first step."""
    schedules = [model.spec.schedule, *SCHEDULES, *([OWN] if model.own_levels else [])]
    mean = mean_image(replace(noises, fitting=len(noises)), NO_CACHE)
    return {
        on_levels(solver, schedule) + afs: trace(
            scheme_of(find(solver), grid_of(model, schedule), Settings(nfe), image)
        )
        for afs, image in (("", None), (" with AFS", mean))
        for schedule in dict.fromkeys(schedules)
        for solver in USUAL
    }


def on_levels(solver: str, schedule: str) -> str:
    return f"{solver} on {schedule} levels"


def error_against_converged(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> float:
    """RMS over pixels of ``count`` images between the plan's and the converged solution from the same noises."""
    return errors_against_converged(model, [plan], count, progress, cache)[0]


def errors_against_converged(
    model: Denoiser, plans: Sequence[Plan], count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> list[float]:
    """``error_against_converged`` of each plan, on the same noises."""
    noises, goal = converged(model, count, progress, cache)
    with progress("samplers", sum(plan.nfe for plan in plans) * count) as noises.network.meter.progress:
        return [error_of(plan, noises, goal) for plan in plans]


def converged(
    model: Denoiser, count: int, progress: ProgressBars, cache: Cache, temperature: float = 1.0
) -> tuple[Noises, Tensor]:
    """``count`` noises that judge, and this process's images [n, …] of them by very many steps."""
    noises = to_judge(model, count, temperature)
    with progress("converged solution", cost(1, REFERENCE_STEPS) * count) as noises.network.meter.progress:
        return noises, solution(noises, [model.spec.sigma_max], REFERENCE_STEPS, cache)[0.0]


def errors_of(plan: Plan, noises: Noises, goal: Tensor) -> tuple[float, float]:
    """RMS errors of the plan's images, and of the median one; ``goal`` [n or more, …] are the converged ones.

    Both are infinite where a state runs away, so that the network's answer is not finite, in any process.
    """
    wrong, failed = torch.zeros_like(goal[: len(noises)]), np.zeros(1)
    try:
        wrong = noises.sample(plan) - goal[: len(noises)]
    except NotFiniteError:
        failed += 1
    if total(failed)[0]:
        return np.inf, np.inf
    return rms(wrong), float(np.median(image_errors(wrong).cpu().numpy()))


def error_of(plan: Plan, noises: Noises, goal: Tensor) -> float:
    return errors_of(plan, noises, goal)[0]
