"""Whatever changes a model's answers changes its fingerprint; what does not, does not."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.unchanged import is_adapted
from tests.calibration.toys import calls_of

CONDITION, IMAGES = edge_sampler.Condition, edge_sampler.Output("images", (1, 8, 8))


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


class OtherHint(Net):
    def forward(self, x: Tensor, t: Tensor, *told: Tensor, hint: Tensor | None = None) -> Tensor:
        return super().forward(x, t, hint=None if hint is None else 2 * hint)


class Masked(nn.Module):
    """Where a mask hides all, attention is not a number, whatever else the network does."""

    factor = 1.0

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        scores = (x[:, :, None] * x[:, None]).masked_fill(~mask[:, None], -torch.inf)
        return self.factor * (scores.softmax(-1) @ x[..., None])[..., 0]


class OtherMasked(Masked):
    factor = 1.2


class Doubled(nn.Module):
    factor = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Tripled(Doubled):
    factor = 3.0


class OtherWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.weight, 1.1)


for one, as_other in ((OtherHint, Net), (OtherMasked, Masked), (OtherCode, Net), (OtherConstant, Net)):
    one.__qualname__ = as_other.__qualname__  # as where a user edits his file


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
    "a hint heard otherwise": lambda: adapted(OtherHint, conditions={"hint": CONDITION((4,), null=0.0)}),
    "a mask": lambda: adapted(Masked, (8,), conditions={"mask": CONDITION((8,), "bool")}),
    "a mask and another constant": lambda: adapted(OtherMasked, (8,), conditions={"mask": CONDITION((8,), "bool")}),
    "a decoder": lambda: adapted(decoder=edge_sampler.Decoder(Doubled(), IMAGES)),
    "another decoder": lambda: adapted(decoder=edge_sampler.Decoder(Tripled(), IMAGES)),
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


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "sin": torch.sin, "silu": nn.functional.silu, "abs": torch.abs, "none": lambda h: h
}  # fmt: skip
TOLD = 0.1


class Stack(nn.Module):
    """Layers of equal weights that differ by what is between them, which no state dict tells."""

    def __init__(self, between: tuple[str, ...], seed: int, factor: float = 1.0, hears: float = 1.0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.layers = nn.ParameterList(torch.from_numpy(rng.standard_normal((12, 12), np.float32)) for _ in between)
        self.between, self.factor, self.hears = between, factor, hears

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = x
        for layer, kind in zip(self.layers, self.between, strict=True):
            h = ACTIVATIONS[kind](h @ layer / 12**0.5 + self.hears * t[:, None] / 1000)
        return h * self.factor


def answers(model: Denoiser) -> Tensor:
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((16, 12), np.float32))
    with torch.inference_mode():
        levels = (model.spec.sigma_max, 1.0, model.spec.sigma_min)
        returned = [x - model(x * sigma, sigma) / sigma for sigma in levels]  # what the network adds, all alike
        return torch.stack(returned)


@given(
    st.lists(st.sampled_from(sorted(ACTIVATIONS)), min_size=2, max_size=4).map(tuple),
    st.integers(0, 999),
    st.data(),
)
@settings(max_examples=60, derandomize=True, database=None)
def test_whatever_changes_a_networks_answers_changes_its_fingerprint(
    between: tuple[str, ...], seed: int, data: st.DataObject
) -> None:
    """Of weights any bit; of code what changes the answers by a tenth, which two digits of six figures show."""

    def made(**changes: Any) -> Denoiser:
        return edge_sampler.adapt(Stack(**{"between": between, "seed": seed, **changes}), (12,), "DDPMPrecond")

    first = made()
    assert made().spec.fingerprint == first.spec.fingerprint
    bit = Stack(between, seed)
    place = tuple(data.draw(st.integers(0, 11)) for _ in range(2))
    with torch.no_grad():
        weight = bit.layers[data.draw(st.integers(0, len(between) - 1))]
        weight[place] = torch.nextafter(weight[place], torch.tensor(torch.inf))
    assert edge_sampler.adapt(bit, (12,), "DDPMPrecond").spec.fingerprint != first.spec.fingerprint
    changes: list[dict[str, Any]] = [
        {"between": tuple(data.draw(st.permutations(between)))},
        {"between": (*between[:-1], data.draw(st.sampled_from(sorted(ACTIVATIONS))))},
        {"factor": data.draw(st.sampled_from([-1.0, 0.8, 1.25]))},
        {"hears": data.draw(st.sampled_from([0.0, 0.5, 2.0]))},
    ]
    for change in changes:
        other = made(**change)
        moved = (answers(other) - answers(first)).square().mean((1, 2)) / answers(first).square().mean((1, 2))
        if moved.max().sqrt() > TOLD:
            assert other.spec.fingerprint != first.spec.fingerprint, change


def test_a_name_and_a_licence_change_nothing() -> None:
    class Renamed(Net):
        pass

    Renamed.__qualname__, Renamed.__module__ = Net.__qualname__, Net.__module__
    assert adapted(Renamed, licence="mine").spec.fingerprint == adapted().spec.fingerprint
    assert models.load("edm-digits").spec.fingerprint == models.load("edm-digits").spec.fingerprint


@pytest.mark.parametrize("other", ["another prediction", "another constant in the code", "another shape"])
def test_a_fit_is_never_another_models(other: str, tmp_path: Any) -> None:
    """The same weights: what was kept of one is not taken for the other."""
    settings, cache = edge_sampler.Settings(2, "iia-ddim", fit_batch=4, heldout=2), Cache(tmp_path)
    first, second = MODELS["as it is"](), MODELS[other]()
    assert first.spec.weights_sha256 == second.spec.weights_sha256
    calibrate(first, settings, cache=cache)
    calls, others = calls_of(first), calls_of(second)
    calibrate(first, settings, cache=cache)
    found = calibrate(second, settings, cache=cache)
    assert not calls
    assert others
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


@dataclass
class Scaled:
    scale: float


class Factor(nn.Module):
    """Holds numbers beside weights, of which answers to a few digits tell little."""

    def __init__(self, factor: float, others: tuple[float, ...] = (), calls: int = 0) -> None:
        super().__init__()
        self.factor, self.others, self.calls = factor, others, calls

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.factor * x


def test_a_number_in_a_network_is_part_of_it() -> None:
    networks = [Factor(0.5), Factor(0.502), Factor(0.5, (1.0, 2.0)), Factor(0.5, (1.0, 2.5))]
    held = (1.5, np.float32(2), {"scale": 3.0}, SimpleNamespace(scale=4.0), Scaled(5.0), Scaled(6.0), [[7.0]])
    networks += [Factor(0.5, one) for one in held]  # type: ignore[arg-type]
    assert len({models.adapt(network, (4,)).spec.fingerprint for network in networks}) == len(networks)
    same = [models.adapt(network, (4,)) for network in (Factor(0.5), Factor(0.5, calls=3))]
    assert same[0].spec.fingerprint == same[1].spec.fingerprint


class Typed(Net):
    """Computes in its weight's type, as networks of libraries do."""

    def forward(self, x: Tensor, t: Tensor, *told: Tensor, hint: Tensor | None = None) -> Tensor:
        return super().forward(x.to(self.weight.dtype), t).to(x.dtype)


def test_the_type_of_weights_is_part_of_a_network() -> None:
    """Though their values are the same, and two digits of its answers."""
    full, half = (edge_sampler.adapt(Typed().to(kind), (1, 8, 8)) for kind in (torch.float32, torch.float16))
    assert full.spec.fingerprint != half.spec.fingerprint
    full.half()
    with pytest.raises(edge_sampler.UserError, match="Typed is not what"):
        edge_sampler.fit(full, nfe=2, solver="ddim")


def test_a_number_in_a_stage_is_part_of_the_model() -> None:
    class Encodes(Factor):
        def forward(self, seen: Tensor) -> tuple[Tensor]:  # type: ignore[override]
            return (self.factor * seen,)

    class Decodes(Factor):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return self.factor * x

    def fingerprint(encoding: float, decoding: float) -> str:
        stages: dict[str, Any] = {
            "encoder": edge_sampler.Encoder(Encodes(encoding), {"seen": CONDITION((4,))}, ("hint",)),
            "decoder": edge_sampler.Decoder(Decodes(decoding), IMAGES),
        }
        seen = {"seen": np.ones((10, 4), np.float32)}
        return adapted(conditions={"hint": CONDITION((4,))}, examples=seen, **stages).spec.fingerprint

    assert len({fingerprint(*factors) for factors in ((0.5, 0.5), (0.50002, 0.5), (0.5, 0.50002))}) == 3


def test_weights_that_came_later_are_refused(tmp_path: Path) -> None:
    network = Net()
    model = edge_sampler.guided(edge_sampler.adapt(network, (4,), classes=3), 2.0)
    settings = edge_sampler.Settings(2, "iia-ddim", fit_batch=4, heldout=2)
    plan = edge_sampler.fit(model, settings)
    with torch.no_grad():
        network.weight.add_(1)
    message = "Net is not what edge_sampler.adapt saw, by its weights, parts or answers: adapt it again"
    with pytest.raises(edge_sampler.UserError, match=message):
        edge_sampler.fit(model, settings)
    with pytest.raises(edge_sampler.UserError, match=message):
        edge_sampler.export_bundle(model, plan, tmp_path / "bundle")
    with torch.no_grad():
        network.weight.sub_(1)
    network.register_buffer("calls", torch.ones(1))  # in which a network may count
    assert edge_sampler.fit(model, settings).table == plan.table
    network.factor = 0.25
    with pytest.raises(edge_sampler.UserError, match=message):
        edge_sampler.fit(model, settings)


def test_weights_that_a_loaded_model_got_later_are_refused() -> None:
    model = models.load("edm-digits")
    assert not is_adapted(model)
    assert is_adapted(edge_sampler.guided(edge_sampler.adapt(Net(), (4,), classes=3), 2.0))
    settings = edge_sampler.Settings(2, "iia-ddim", fit_batch=4, heldout=2)
    edge_sampler.fit(model, settings)
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 1e-3
    with pytest.raises(edge_sampler.UserError, match=r"edm-digits has other weights than were loaded: give a file"):
        edge_sampler.fit(model, settings)
