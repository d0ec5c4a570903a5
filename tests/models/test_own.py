"""Networks of one's own, as docs/your-model.md has them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample
from tests.models.test_probe import HINT, POSE, MixingHints, Told

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-model.md").read_text()


def test_the_page_names_every_preconditioning() -> None:
    told = set(re.findall(r'^\| `"([A-Z]\w+)"`', PAGE, re.M))
    assert told == PRECONDITIONINGS.keys() - {"iDDPMPrecond"}  # a name for EDM's files alone


class Flow(nn.Module):
    """Rectified flow toward images that are all 0.5; takes (x, t)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert 0 <= float(t.max()) <= 1
        return (x - 0.5) / t.clamp_min(1e-3)[:, None, None, None]


def test_a_flow_that_is_told_t() -> None:
    model = models.adapt(Flow(), (1, 4, 4), "FlowPrecond", num_train_timesteps=1)
    x = 0.5 + 3.0 * torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(model(x, 3.0), torch.full_like(x, 0.5))


def test_the_guide_has_each_preconditioning() -> None:
    page = (Path(models.__file__).parents[1] / "docs" / "your-model.md").read_text()
    assert set(re.findall(r'^\| `"(\w*Precond|Denoised)"`', page, re.MULTILINE)) == set(PRECONDITIONINGS)


class Wrong(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precond": "VPrecond"}, "precond is 'VPrecond'; allowed: EDMPrecond, "),
        ({"precond": "FlowPrecond", "sigma_data": 1}, "FlowPrecond has no argument sigma_data"),
        ({"precond": "DDPMPrecond", "prediction_type": "x0"}, "prediction_type is 'x0'; allowed: epsilon, "),
        ({"precond": "EDMPrecond", "sigma_data": 0}, "EDMPrecond: sigma_data is 0; it must be above 1e-06"),
        ({"precond": "FlowPrecond", "reversed_time": "no"}, "reversed_time is 'no'; it must be true or false"),
        ({}, r"Wrong returned \[1, 4, 4\] for x \[1, 1, 4, 4\]"),
    ],
)
def test_what_cannot_be_adapted(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.adapt(Wrong(), (1, 4, 4), **arguments)  # type: ignore[arg-type]


class Classed(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:
        return x * classes.sum(1, keepdim=True)


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.double()


ROWS = np.zeros((6, 4), np.float32)


class Hints(nn.Module):
    """Makes a hint of so many numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(2, size)

    def forward(self, seen: Tensor) -> tuple[Tensor]:
        return (self.layer(seen.to(self.layer.weight.dtype)),)


class Same(nn.Module):
    """Makes one hint for all."""

    def forward(self, seen: Tensor) -> tuple[Tensor]:
        return (torch.ones(1, 4),)


class Nothing(nn.Module):
    def forward(self, seen: Tensor) -> tuple[None]:
        return (None,)


SEEN = {"seen": edge_sampler.Condition((2,))}


def test_an_argument_that_a_preconditioning_lacks_is_told_with_those_that_it_has() -> None:
    with pytest.raises(UserError, match="FlowPrecond has no argument train_timesteps; it has num_train_t"):
        models.adapt(Told(), (8,), precond="FlowPrecond", train_timesteps=1)
    with pytest.raises(UserError, match="Denoised has no argument sigma_data; it has none"):
        models.adapt(Told(), (8,), sigma_data=1.0)


class Joining(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return torch.cat([x, noise[:, None]], 1)[:, :8]


def test_a_network_that_one_noise_level_does_not_suit_is_told_the_shapes() -> None:
    with pytest.raises(
        UserError, match=r"Joining failed for x \[2, 8\] and a noise level \[1\], one for all samples: Sizes"
    ):
        models.adapt(Joining(), (8,))


@pytest.mark.parametrize("shape", [144, (), "ab", None, np.zeros(0, int)])
def test_a_shape_is_several_numbers(shape: Any) -> None:
    with pytest.raises(UserError, match=r"shape is .*; it must be a tuple of sizes, such as \(144,\) or \(3, 32"):
        models.adapt(Told(), shape)


class Extra(nn.Module):
    """Keeps more than tensors among its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": 5}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pass

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x).tanh()


def test_what_is_no_weight_and_another_default_dtype_change_nothing() -> None:
    torch.manual_seed(0)
    network = Extra()
    one = models.adapt(network, (8,))
    torch.set_default_dtype(torch.float64)
    try:
        again = models.adapt(network, (8,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert one.spec.fingerprint == again.spec.fingerprint


@pytest.mark.parametrize("network", [Told, lambda x, noise: x, None, "net.pt"])
def test_a_network_is_a_module(network: Any) -> None:
    with pytest.raises(UserError, match=r"^network is .*; it must be an object of class Module$"):
        models.adapt(network, (8,))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (edge_sampler.Encoder, (None, SEEN, ("hint",)), "module is None; it must be an object of class Module"),
        (edge_sampler.Encoder, (Hints(4), None, ("hint",)), "inputs is None; it must be a mapping of names, each an"),
        (edge_sampler.Encoder, (Hints(4), SEEN, "hint"), "makes is 'hint'; it must be a list, each a text"),
        (edge_sampler.Decoder, (None, POSE), "module is None; it must be an object of class Module"),
        (edge_sampler.Decoder, (Hints(4), 0), "output is 0; it must be an object of class Output"),
        (edge_sampler.Condition, (None,), "a condition's shape is None; it must be a tuple"),
    ],
)
def test_parts_of_another_type_are_refused(make: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": {"hint": ROWS[:, :3]}}, r"hint has shape \[6, 3\]; hint must be float32 \[4\]"),
        ({"examples": {"hint": ROWS[:0]}}, "there are no examples"),
        (
            {"classes": 5, "examples": {"hint": ROWS, "class_labels": ROWS[:, 0]}},
            "class_labels takes no examples: each of its 5 is drawn",
        ),
        ({"examples": {"hint": ROWS, "more": ROWS}}, "unknown condition 'more'"),
        ({"examples": {"hint": ROWS, "more": ROWS[:2]}}, "of as many rows"),
        ({"examples": {"hint": ROWS * np.nan}}, "hint holds NaN"),
        ({"examples": {}}, "of as many rows: there are none"),
        ({"encoder": edge_sampler.Encoder(Hints(3), SEEN, ("hint",))}, r"hint has shape \[2, 3\]"),
        (
            {"encoder": edge_sampler.Encoder(Hints(4).bfloat16(), SEEN, ("hint",))},
            r"made hint as torch.bfloat16 \[1, 4\]; it should be torch.float32 \[1, …\]",
        ),
        (
            {"encoder": edge_sampler.Encoder(Same(), SEEN, ("hint",))},
            r"made hint as torch.float32 \[1, 4\]; .* \[2, …\]",
        ),
        ({"encoder": edge_sampler.Encoder(Nothing(), SEEN, ("hint",))}, "made hint as NoneType; it should be"),
        (
            {"encoder": edge_sampler.Encoder(Hints(4), SEEN, ("hnt",))},
            "the encoder makes 'hnt'; the network's conditions are",
        ),
        (
            {"decoder": edge_sampler.Decoder(nn.Linear(8, 3), edge_sampler.Output("pose", (4,)))},
            r"the decoder returned \[1, 3\] for x \[1, 8\]; its output says \[1, 4\]",
        ),
        ({"decoder": edge_sampler.Decoder(MixingHints(), POSE)}, r"the decoder returned a tuple for x \[1, 8\]"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min is 2 and sigma_max 1; they must be above 0 and in order"),
        ({"sigma_min": 0}, "sigma_min is 0 and sigma_max 80; they must be above 0 and in order"),
        ({"sigma_max": 10**400}, r"Denoised with sigma_max=1000\d*: int too large"),
        ({"sigma_max": 0.0}, "sigma_min is 0.002 and sigma_max 0; they must be above 0 and in order"),
        ({"sigma_min": False}, "sigma_min is False; it must be a number or null"),
        ({"sigma_max": "80"}, "sigma_max is '80'; it must be a number or null"),
        ({"sigma_max": torch.tensor(5.0)}, r"sigma_max is tensor\(5.\); it must be a number or null"),
        ({"precond": "DDPMPrecond", "sigma_max": 1e6}, "sigma_max 1e.06; DDPMPrecond knows 0.01 to 157.4"),
        ({"precond": "VPPrecond", "sigma_max": 1e5}, "sigma_max 100000; VPPrecond knows .* to 152"),
        ({"licence": object()}, "licence is <object .*; it must be a line of text"),
        ({"licence": "a\nb"}, "it must be a line of text"),
        ({"licence": "\udc80"}, "it must be a line of text"),
        (
            {"conditions": {"hint": edge_sampler.Condition((4,), null=float("nan"))}},
            "condition hint has a null of NaN or infinity",
        ),
        (
            {"conditions": {"hint": edge_sampler.Condition((4,), null=[1, 2, 3])}},
            r"condition hint has a null \[1, 2, 3\], which is no float32 of shape \(4,\)",
        ),
        ({"conditions": {"hint": edge_sampler.Condition((4,), null="x")}}, "condition hint has a null 'x'"),
        ({"decoder": edge_sampler.Decoder(Doubled(), edge_sampler.Output("pose", (8,)))}, "returned torch.float64"),
        ({"classes": 1.5}, "classes is 1.5; it must be a whole number, 0 or more"),
        ({"classes": True}, "classes is True; it must be a whole number, 0 or more"),
        ({"classes": None}, "classes is None; it must be a whole number, 0 or more"),
        ({"classes": 2**31}, "classes is larger than 65536, beyond any network's"),
        (
            {"precond": "VPPrecond", "beta_d": 999, "beta_min": 999},
            "VPPrecond with beta_d=999, beta_min=999: math range error",
        ),
        (
            {"conditions": {"hint": 5}},
            "conditions is {'hint': 5}; it must be a mapping of names, each an object",
        ),
        ({"conditions": {5: edge_sampler.Condition()}}, "conditions is {5: Cond.*; it must be a mapping of names"),
        ({"axes": [1]}, r"axes is \[1\]; it must be a mapping of names, each a list, each a whole number"),
        ({"axes": {5: (4, 8, 8)}}, "axes is {5: .*; it must be a mapping of names"),
        ({"encoder": 5}, "encoder is 5; it must be an object of class Encoder or null"),
        (
            {"decoder": nn.Sequential(nn.Flatten())},
            r"decoder is Sequential\( \(0\).*; it must be an object of class Decoder or null",
        ),
        ({"output": ""}, "an output is called ''; it must be a word"),
        ({"examples": 5}, "examples are of type int: give arrays by name, or a function of seeds"),
        ({"axes": {"length": (4, 2, 8)}}, "sizes 4, 2, 8; they must be at least 1, and in order"),
    ],
)
def test_conditions_and_stages_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.adapt(Told(), (8,), **{"conditions": HINT, **arguments})


def test_numbers_of_numpy_are_numbers() -> None:
    model = models.adapt(Classed(), np.array([8]), classes=np.int64(3), sigma_max=np.float32(5))  # type: ignore[arg-type]
    assert json.loads(json.dumps([model.spec.shape, model.spec.classes, model.spec.sigma_max])) == [[8], 3, 5.0]


def test_a_condition_without_examples_is_asked_for_before_the_fit() -> None:
    model = models.adapt(Told(), (8,), conditions=HINT)
    with pytest.raises(UserError, match=r"Told has no examples of its condition hint.*--conditions FILE\.npz"):
        calibrate(model, Settings(2, "iia-ddim"))


def test_examples_may_be_a_function_of_seeds() -> None:
    def examples(seeds: Sequence[int]) -> dict[str, np.ndarray]:
        return {"hint": np.array([[seed] * 4 for seed in seeds], np.float32)}

    model = models.adapt(Told(), (8,), conditions=HINT, examples=examples)
    assert model.draw_raw([7, 9])["hint"][:, 0].tolist() == [7, 9]


def test_a_network_keeps_its_own_limits() -> None:
    spec = models.adapt(Told(), (8,), conditions=HINT, sigma_min=0.01, sigma_max=150.0).spec
    assert (spec.sigma_min, spec.sigma_max) == (0.01, 150.0)


@pytest.mark.parametrize("reversed_time", [False, True])
@pytest.mark.parametrize("predicts", ["noise-data", "data-noise"])
def test_flows_that_count_time_backward_or_predict_the_other_direction(reversed_time: bool, predicts: str) -> None:
    class Knowing(nn.Module):
        """Rectified flow toward data that are all 0.5."""

        def forward(self, x: Tensor, told: Tensor) -> Tensor:
            t = (1 - told if reversed_time else told)[:, None]
            away = (x - 0.5) / t.clamp_min(1e-3)  # x = 0.5 + t·(noise - 0.5)
            return away if predicts == "noise-data" else -away

    arguments: Any = {"reversed_time": reversed_time, "predicts": predicts}
    model = models.adapt(Knowing(), (8,), "FlowPrecond", num_train_timesteps=1, **arguments)
    x = 0.5 + 3.0 * torch.randn(2, 8)
    torch.testing.assert_close(model(x, 3.0), torch.full_like(x, 0.5))
    assert model.spec.sigma_max == 1e7
    assert model.spec.schedule == "flow"


def test_a_flow_starts_where_its_noise_does() -> None:
    """Against Euler from t = 1 by hand: what a start at σ = 80 would miss is the hundredth part."""

    class Velocity(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return (x * 1.3 + t[:, None]).sin()

    model = models.adapt(Velocity(), (8,), "FlowPrecond", num_train_timesteps=1)
    plan = calibrate(model, Settings(4, "ddim"))
    noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).double()
    x = noise
    for k in range(4):
        x = x - Velocity()(x, torch.full((3,), 1 - k / 4).double()) / 4
    made = sample(lambda x, sigma: model(x.float(), sigma).double(), noise, plan)
    torch.testing.assert_close(made, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["heun", "spndm"])
def test_a_solver_that_fails_from_a_flows_first_level_is_refused(solver: str) -> None:
    """It averages two slopes over a step of ten million."""
    model = models.load("flow-digits")
    with pytest.raises(UserError, match=rf"{solver} weighs the network's answers by up to .*which float32 cannot hold"):
        calibrate(model, Settings(5, solver))
    for sound in ("ddim", "ipndm", "unipc", "deis", "dpmpp-2m"):
        assert calibrate(model, Settings(5, sound)).nfe == 5


def test_a_condition_cannot_be_called_as_classes_are() -> None:
    with pytest.raises(UserError, match="class_labels is what classes=K makes"):
        edge_sampler.adapt(Flow(), (1, 8, 8), conditions={"class_labels": edge_sampler.Condition((4,))})


@pytest.mark.parametrize("layer", [nn.LazyLinear(2), nn.Linear(2, 2, device="meta")], ids=["lazy", "meta"])
def test_a_network_without_values_is_refused(layer: nn.Module) -> None:
    with pytest.raises(UserError, match=r"\.weight has no values: load weights, or run the network once"):
        edge_sampler.adapt(layer, (2,))
