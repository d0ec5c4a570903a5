"""The rivals that a bundle's report names: each error is its solver's own, and the best is the best on its levels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.judge import USUAL, error_of, errors_against_converged, judge
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import adapt
from edge_sampler.runtime.errors import UserError

NOISES = 8


def test_the_best_is_the_best_over_levels(mixture: Denoiser) -> None:
    """No solver on any levels errs less on these noises, but for another mean of the analytical first step."""
    plans = {
        f"{solver} on {schedule} levels{' with AFS' * afs}": calibrate(
            mixture, Settings(4, solver, schedule, afs=afs, fit_batch=NOISES, heldout=2)
        )
        for solver in USUAL
        for schedule in SCHEDULES
        for afs in (False, True)
    }
    errors = dict(zip(plans, errors_against_converged(mixture, [*plans.values()], NOISES), strict=True))
    plan = plans["ddim on vp levels"]
    found = judge(mixture, plan, NOISES)
    assert found.error == pytest.approx(errors["ddim on vp levels"])
    *usual, best = found.others
    assert usual == [f"{solver} on edm levels" for solver in USUAL]
    for name, error in found.others.items():
        assert error == pytest.approx(errors[name], rel=0.05 if "AFS" in name else 1e-6)
    assert found.others[best] < 1.05 * min(errors.values()) < min(found.others[name] for name in usual)


class Bounded(nn.Module):
    """Knows nothing beyond twice the noise level, as a network of 16 bits overflows."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        within = (x.abs() <= 5 * (1 + sigma.reshape(-1, 1))).all(1, keepdim=True)
        return torch.where(within, x / (1 + sigma.reshape(-1, 1) ** 2), torch.nan)


def test_a_sampler_that_runs_away_has_an_infinite_error_and_names_none_else() -> None:
    model = adapt(Bounded(), (4,))
    good = calibrate(model, Settings(4, "ddim"))
    wild = replace(good, table=(good.table[0], (1e6, 0.0), *good.table[2:]))
    noises = to_judge(model, NOISES)
    assert error_of(wild, noises, torch.zeros_like(noises.noise)) == float("inf")
    with pytest.raises(UserError, match="ddim ends in NaN or infinity on noises that no fit has seen"):
        judge(model, wild, NOISES)
    assert judge(model, good, NOISES).error < float("inf")


def test_a_plan_is_judged_at_the_temperature_of_its_fit(mixture: Denoiser) -> None:
    settings = Settings(3, "iia-ddim", fit_batch=NOISES, heldout=4, temperature=0.3)
    plan = calibrate(mixture, settings)
    noises = to_judge(mixture, NOISES, 0.3)
    goal = solution(noises, [mixture.spec.sigma_max], REFERENCE_STEPS, NO_CACHE)[0.0]
    assert judge(mixture, plan, NOISES).error == pytest.approx(error_of(plan, noises, goal), rel=1e-9)
    assert judge(mixture, plan, NOISES).error != pytest.approx(judge(mixture, replace(plan, report=None), NOISES).error)
