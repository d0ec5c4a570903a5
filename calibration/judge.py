"""How far samplers end from the converged solution, on noises that no fit has seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.evaluate.noise_sets import to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import rms
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.plan import Plan, sample

USUAL = ("ddim", "dpmpp-2m", "ipndm")  # what people run without a fit


@dataclass(frozen=True)
class Judgement:
    """How far a sampler's images are from the converged ones, and fixed solvers' from the same noises at the same NFE.

    Args:
        noises: how many.
        error: RMS of the sampler's, in the data's units.
        others: the same by solver, on the model's usual noise levels.
        schedule: the name of those.

    Examples:
        >>> from edge_sampler.calibration.judge import Judgement
        >>> Judgement(128, 0.03, {"ddim": 0.2}, "edm").record()["rms_error"]
        0.03
    """

    noises: int
    error: float
    others: dict[str, float]
    schedule: str

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values.
        """
        return {
            "noises": self.noises,
            "rms_error": self.error,
            "fixed_solvers": self.others,
            "schedule": self.schedule,
        }


def judge(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> Judgement:
    """Judges a plan beside DDIM, DPM-Solver++ (2M) and iPNDM, on noises that no fit has seen.

    Args:
        model: the denoiser that it was fitted for.
        plan: the sampler.
        count: of noises.
        progress: what shows how far it is: ``edge_sampler.models.progress.bar``, or by default nothing.
        cache: where results are kept; by default nowhere.

    Returns:
        RMS errors against images of very many steps.

    Examples:
        >>> from edge_sampler.calibration.judge import judge
        >>> found = judge(model, plan, 4)
        >>> found.error == found.others["ddim"], list(found.others)
        (True, ['ddim', 'dpmpp-2m', 'ipndm'])
    """
    grid, settings = grid_of(model, model.spec.schedule), Settings(plan.nfe)
    fixed = {name: trace(scheme_of(find(name), grid, settings)) for name in USUAL}
    error, *others = errors_against_converged(model, [plan, *fixed.values()], count, progress, cache)
    known = {name: other for name, other in zip(fixed, others, strict=True) if np.isfinite(other)}
    return Judgement(count, error, known, model.spec.schedule)


def error_against_converged(
    model: Denoiser, plan: Plan, count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> float:
    """RMS over pixels of ``count`` images between the plan's and the converged solution from the same noises."""
    return errors_against_converged(model, [plan], count, progress, cache)[0]


def errors_against_converged(
    model: Denoiser, plans: Sequence[Plan], count: int, progress: ProgressBars = silent, cache: Cache = NO_CACHE
) -> list[float]:
    """``error_against_converged`` of each plan, on the same noises."""
    noises = to_judge(model, count)
    spent = (cost(1, REFERENCE_STEPS) + sum(plan.nfe for plan in plans)) * count
    with progress("converged solution", spent) as noises.network.meter.progress:
        fine = solution(noises, [model.spec.sigma_max], REFERENCE_STEPS, cache)
        return [rms(sample(noises.network, noises.noise, plan) - fine[0.0]) for plan in plans]
