"""The rivals that a bundle's report names: each error is its solver's own, and the best is the best on its levels."""

import pytest

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.judge import USUAL, errors_against_converged, judge
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.denoiser import Denoiser

NOISES = 8


def test_the_best_is_the_best_over_levels(mixture: Denoiser) -> None:
    """No solver on any levels errs less on these noises, but for another mean of the analytical first step."""
    plans = {
        f"{solver} on {schedule} levels{' with AFS' * afs}": calibrate(
            mixture, Settings(4, solver, schedule, afs=afs, fit_batch=NOISES, heldout=1)
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
