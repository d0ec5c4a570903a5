"""A fit that aims at another model: by whatever target, told by its own encoder, and only while it is unchanged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

FEW = Settings(3, "iia-ddim", fit_batch=8, heldout=4, fine_steps=2, reference_steps=12)


class Told(nn.Module):
    """Draws toward ``to``, by ``strength``."""

    def __init__(self, strength: float = 0.9) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(strength))

    def forward(self, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
        return to + self.strength * (x - to) / (1 + sigma.reshape(-1, 1) ** 2)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, value: Tensor) -> tuple[Tensor, ...]:
        return (self.factor * value,)


def told(strength: float = 0.9, factor: float = 1.0) -> Denoiser:
    encoder = edge_sampler.Encoder(Times(factor), {"value": edge_sampler.Condition((2,))}, ("to",))
    examples = {"value": np.random.default_rng(0).standard_normal((8, 2), np.float32)}
    conditions = {"to": edge_sampler.Condition((2,))}
    return edge_sampler.adapt(Told(strength), (2,), conditions=conditions, encoder=encoder, examples=examples)


@pytest.mark.parametrize("target", ["local", "global"])
@pytest.mark.parametrize("other", [{"strength": 0.5}, {"factor": 2.0}], ids=["network", "encoder"])
def test_a_fit_aims_at_what_the_other_answers(target: str, other: dict[str, float]) -> None:
    settings = replace(FEW, fit_target=target)
    alone, aimed = calibrate(told(), settings), calibrate(told(), settings, towards=told(**other))
    assert np.abs(np.array(alone.table[-1]) - aimed.table[-1]).max() > 1e-3
    again = calibrate(told(), settings, towards=told())
    np.testing.assert_allclose(alone.table[-1], again.table[-1], atol=1e-9)
    assert again.report is not None
    assert aimed.report is not None
    assert again.report.evaluations == aimed.report.evaluations > 0


def test_another_that_has_changed_is_refused() -> None:
    other = told()
    with torch.no_grad():
        next(other.parameters()).mul_(0.5)
    with pytest.raises(UserError, match="by its weights, parts or answers: adapt it again"):
        calibrate(told(), FEW, towards=other)
