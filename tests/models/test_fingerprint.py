"""Whatever changes a model's answers changes its fingerprint; what does not, does not."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser

CONDITION = edge_sampler.Condition


class Net(nn.Module):
    factor = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x: Tensor, t: Tensor, *told: Tensor, hint: Tensor | None = None) -> Tensor:
        shift = 0.0 if hint is None else hint.mean(-1).reshape(-1, *[1] * (x.ndim - 1))
        return (x * self.weight * self.factor + shift).tanh()


class OtherCode(Net):
    def forward(self, x: Tensor, t: Tensor, *told: Tensor, hint: Tensor | None = None) -> Tensor:
        return super().forward(x, t, hint=hint).sin()


class OtherConstant(Net):
    factor = 0.6


class OtherWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.weight, 1.1)


def adapted(network: Callable[[], nn.Module] = Net, shape: tuple[int, ...] = (1, 8, 8), **arguments: Any) -> Denoiser:
    return edge_sampler.adapt(network(), shape, arguments.pop("precond", "DDPMPrecond"), **arguments)


MODELS: dict[str, Callable[[], Denoiser]] = {
    "as it is": adapted,
    "another shape": lambda: adapted(shape=(1, 16, 16)),
    "another rank": lambda: adapted(shape=(64,)),
    "another preconditioning": lambda: adapted(precond="Denoised"),
    "another prediction": lambda: adapted(prediction_type="v_prediction"),
    "another schedule of training": lambda: adapted(beta_schedule="scaled_linear"),
    "another highest level": lambda: adapted(sigma_max=40.0),
    "other code": lambda: adapted(OtherCode),
    "another constant in the code": lambda: adapted(OtherConstant),
    "other weights": lambda: adapted(OtherWeights),
    "classes": lambda: adapted(classes=3),
    "more classes": lambda: adapted(classes=4),
    "one class": lambda: conditioned(adapted(classes=3), 1),
    "another class": lambda: conditioned(adapted(classes=3), 2),
    "guided": lambda: conditioned(adapted(classes=3), guidance=2.0),
    "guided more": lambda: conditioned(adapted(classes=3), guidance=3.0),
    "a hint": lambda: adapted(conditions={"hint": CONDITION((4,), null=0.0)}),
    "a hint of another null": lambda: adapted(conditions={"hint": CONDITION((4,), null=1.0)}),
    "a hint built in": lambda: edge_sampler.built_in(
        adapted(conditions={"hint": CONDITION((4,), null=0.0)}), "hint", [1, 2, 3, 4]
    ),
    "another hint built in": lambda: edge_sampler.built_in(
        adapted(conditions={"hint": CONDITION((4,), null=0.0)}), "hint", [1, 2, 3, 5]
    ),
}


def test_every_change_shows() -> None:
    prints = {name: make().spec.fingerprint for name, make in MODELS.items()}
    assert len(set(prints.values())) == len(MODELS), prints
    assert prints == {name: make().spec.fingerprint for name, make in MODELS.items()}


def test_a_name_and_a_licence_change_nothing() -> None:
    class Renamed(Net):
        pass

    Renamed.__qualname__, Renamed.__module__ = Net.__qualname__, Net.__module__
    assert adapted(Renamed, licence="mine").spec.fingerprint == adapted().spec.fingerprint
    assert models.load("edm-digits").spec.fingerprint == models.load("edm-digits").spec.fingerprint


@pytest.mark.parametrize("other", ["another prediction", "another constant in the code", "another shape"])
def test_a_fit_is_never_another_models(other: str, tmp_path: Any) -> None:
    """The same weights: what was kept of one is not taken for the other."""
    settings, cache = edge_sampler.Settings(2, "iia-ddim", batch=4, heldout=2), Cache(tmp_path)
    first, second = MODELS["as it is"](), MODELS[other]()
    assert first.spec.weights_sha256 == second.spec.weights_sha256
    calibrate(first, settings, cache=cache)
    again, found = calibrate(first, settings, cache=cache), calibrate(second, settings, cache=cache)
    assert again.report
    assert found.report
    assert again.report.evaluations == 0 < found.report.evaluations
    assert found == calibrate(second, settings)


def test_held_out_examples_are_others() -> None:
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    model = adapted(conditions={"hint": CONDITION((4,))}, examples={"hint": rows})
    noises = to_fit(model, 50, 30, 0)
    drawn = noises.network.conditions["hint"][:, 0].tolist()
    fitted, held = set(drawn[:50]), set(drawn[50:])
    assert fitted <= set(rows[:8, 0].tolist())
    assert held <= set(rows[8:, 0].tolist())
    assert min(len(fitted), len(held)) > 1
