"""Flows that are nearly straight, whose answers hardly differ: a fit must not weigh their rounding."""

import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.rounding import NOTHING, ROUNDED, rounding_error
from edge_sampler.calibration.settings import Settings
from edge_sampler.runtime.plan import Plan
from tests.conftest import report_of


class Straight(nn.Module):
    """From each noise n nearly straight to 0.3·n + m: the slope is nearly the same all the way."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.means = nn.Parameter(torch.linspace(-1, 1, 6))
        self.bend, self.last = nn.Linear(7, 32), nn.Linear(32, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        noise = (x - (1 - t) * self.means) / (t + 0.3 * (1 - t))
        bent = self.last(torch.tanh(self.bend(torch.cat([x, t.expand(x.shape[0], 1)], 1))))
        return 0.7 * noise - self.means + 0.01 * torch.as_tensor(bent)


@pytest.mark.parametrize("nfe", [4, 6, 8])
def test_a_straight_flow_is_fitted_and_float32_holds_the_plan(nfe: int) -> None:
    model = edge_sampler.adapt(Straight(), (6,), "FlowPrecond", num_train_timesteps=1)
    plan = calibrate(model, Settings(nfe))
    report = report_of(plan)
    assert rounding_error(plan) < 1e-4
    assert report.heldout_rms_error < 0.01
    assert min(report.refinement) >= rounding_error(plan)  # which is counted among what it errs
    assert nfe == 4 or report.settings["ridge"] > Settings(nfe).ridge  # what was needed is told


class Gaussian(nn.Module):
    """Of normal data: all answers are multiples of the noise, and a fit is exact."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma[:, None] ** 2)


def test_a_fit_that_is_exact_keeps_its_ridge() -> None:
    model = edge_sampler.adapt(Gaussian(), (6,), sigma_min=0.01, sigma_max=10.0)
    report = report_of(
        calibrate(
            model, Settings(4, "iia-ddim", schedule="edm", fit_target="global", ridge=1e-9, fit_batch=16, heldout=8)
        )
    )
    assert report.heldout_rms_error < NOTHING
    assert report.settings["ridge"] == 1e-9


def test_the_error_of_rounding_is_that_of_the_largest_weight() -> None:
    """Of answers; a state's own scale is none."""
    plan = Plan("ddim", (2.0, 1.0), ((90.0,), (1.0, -30.0), (0.5, 2.0, 10.0)))
    assert rounding_error(plan) == pytest.approx(30 * ROUNDED)
