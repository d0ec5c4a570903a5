"""Networks of one's own: what PyTorch can run is exported and right, and what no graph can hold is one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.extend import Additions, add
from edge_sampler.export.facts import sample_command
from edge_sampler.export.form import output_of
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Output

CONDITION = edge_sampler.Condition


class Net(nn.Module):
    """Two convolutions and an embedding of the noise level."""

    def __init__(self, taken: int, made: int, rank: int = 2) -> None:
        super().__init__()
        convolution = {1: nn.Conv1d, 2: nn.Conv2d}[rank]
        self.embed, self.last = nn.Linear(4, 8), convolution(8, made, 3, padding=1)
        self.first = convolution(taken, 8, 3, padding=1)

    def embedding(self, t: Tensor) -> Tensor:
        return self.embed((t[:, None] * torch.arange(1, 5)).sin())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedded = self.embedding(t)
        return self.last(torch.relu(self.first(x) + embedded.reshape(*embedded.shape, *[1] * (x.ndim - 2))))


class Double(Net):
    def embedding(self, t: Tensor) -> Tensor:
        return self.embed((t.double()[:, None] * torch.arange(1, 5).double()).sin().float())


class DoubleToTheEnd(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t).double()


class Blind(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


class TwoShifts(Net):
    """Both become part of one convolution's bias."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedded, level = self.embedding(t)[..., None, None], t.sin()[:, None, None, None]
        return self.last(torch.relu(self.first(x) + embedded + level * torch.ones(1, 8, 1, 1)))


class OneChannel(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + t[:, None, None, None]


class DoubleConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level, self.norm = nn.Conv1d(1, 2, 3, padding=1).double(), nn.GroupNorm(2, 2).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        told = self.norm(self.level(t.double()[:, None, None] * torch.arange(4).double()))
        return 0.5 * x + told.sin().mean((1, 2))[:, None, None, None].float()


class BesideAnImage(nn.Module):
    """Super-resolution and the like: the image's channels stand beside the noise's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(3, 1)

    def forward(self, x: Tensor, t: Tensor, image: Tensor) -> Tensor:
        return self.net(torch.cat([x, image.expand(x.shape[0], -1, -1, -1)], dim=1), t)


IMAGE = CONDITION((2, 8, 8), null=0.0)
CASES: dict[str, Any] = {
    "double inside": (lambda: Double(3, 3), (3, 8, 8), {}),
    "double convolutions": (DoubleConvolution, (1, 8, 8), {}),
    "two shifts": (lambda: TwoShifts(1, 1), (1, 8, 8), {}),
    "one channel": (OneChannel, (1, 8, 8), {}),
    "double to the end": (lambda: DoubleToTheEnd(3, 3), (3, 8, 8), {}),
    "not told the noise level": (lambda: Blind(1, 1), (1, 8, 8), {}),
    "a sequence": (lambda: Net(7, 7, rank=1), (7, 16), {}),
    "2 channels": (lambda: Net(2, 2), (2, 8, 8), {}),
    "4 channels": (lambda: Net(4, 4), (4, 8, 8), {}),
    "5 channels, not square": (lambda: Net(5, 5), (5, 4, 6), {}),
    "an image beside the noise": (BesideAnImage, (1, 8, 8), {"image": IMAGE}),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_exported_and_right(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, shape, conditions = CASES[name]
    examples = {key: np.random.default_rng(0).normal(size=(5, 2, 8, 8)) for key in conditions}
    model = edge_sampler.adapt(
        make(), shape, "DDPMPrecond", conditions=conditions, examples=examples if examples else None
    )
    plan = edge_sampler.fit(model, edge_sampler.Settings(3, "iia-ddim", fit_batch=8, heldout=4))
    edge_sampler.export_bundle(model, plan, tmp_path / "bundle")
    bundle = edge_sampler.Bundle.open(tmp_path / "bundle")
    assert within(compare(bundle), 1e-4)
    assert (tmp_path / "bundle" / "samples.png").is_file()
    with edge_sampler.load(tmp_path / "bundle") as sampler:
        made = sampler.sample([0, 1], **{key: rows[0] for key, rows in examples.items()})
    assert made.shape == (2, *shape)
    assert made.dtype == np.float32


class Padded(nn.Module):
    """A transformer over sequences of which places are hidden. In a fast path PyTorch makes these 0."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.first, self.inner, self.last = nn.Linear(6, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 6)

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        mask = mask.expand(x.shape[0], -1)
        made: Tensor = self.last(self.inner(self.first(x) + t[:, None, None].sin(), src_key_padding_mask=~mask))
        return made


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_hidden_places_are_those_of_the_graph(tmp_path: Path) -> None:
    mask = np.arange(12)[None] < np.random.default_rng(0).integers(3, 12, (8, 1))
    conditions = {"mask": CONDITION((12,), "bool")}
    model = edge_sampler.adapt(Padded(), (12, 6), "FlowPrecond", conditions=conditions, examples={"mask": mask})
    edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=2, solver="ddim"), tmp_path / "bundle")
    bundle = edge_sampler.Bundle.open(tmp_path / "bundle")
    assert not bundle.reference()["input_mask"].all()
    assert within(compare(bundle), 1e-4)


class OfKinds(nn.Module):
    """Told two of five kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, x: Tensor, t: Tensor, kinds: Tensor) -> Tensor:
        return (x + self.table(kinds).prod(1)[:, None, None, :]).tanh()


def test_choices_may_be_of_several_numbers(tmp_path: Path) -> None:
    """Fits draw each of them."""
    model = edge_sampler.adapt(OfKinds(), (1, 8, 8), conditions={"kinds": CONDITION((2,), "int64", choices=5)})
    drawn = model.draw_raw(range(200))["kinds"]
    assert drawn.shape == (200, 2)
    assert len(np.unique(drawn, axis=0)) == 25
    edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=2, solver="ddim"), tmp_path / "bundle")
    bundle = edge_sampler.Bundle.open(tmp_path / "bundle")
    assert within(compare(bundle), 1e-4)
    assert bundle.examples(6)["kinds"].tolist() == [[k % 5] * 2 for k in range(6)]
    assert "--condition FILE.npz" in sample_command(bundle)


class Deciding(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x if x.isnan().any().item() else super().forward(x, t)


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(7, 8)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.bag((x * 0).long()[:, 0, 0])[:, None, None]


class FixesTheLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(16, 4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.positions


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: Deciding(1, 1), (1, 8, 8), "decides by the values of its input"),
        (lambda: FixesTheLength(), ("length", 4), "length"),
        (Bag, (1, 8, 8), r"Bag makes lists of tensors \(SequenceEmpty\).*let it look ids up with torch.nn.Embedding"),
    ],
)
def test_what_no_graph_can_hold_is_one_line(make: object, shape: tuple[int | str, ...], message: str) -> None:
    axes = {"length": (8, 16, 32)} if "length" in shape else {}
    model = edge_sampler.adapt(make(), shape, axes=axes)  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as raised:
        export_graphs(model)
    assert "\n" not in str(raised.value)


class Large(nn.Module):
    """Values on the way are beyond float16's range."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.constant_(self.first.weight, 3e4)
        nn.init.constant_(self.last.weight, 1e-5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(10 * x))


def test_a_precision_that_makes_nan_joins_no_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = edge_sampler.adapt(Large(), (4,))
    folder = edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=2, solver="ddim"), tmp_path / "b").folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="makes NaN or infinity where sampler"):
        add(edge_sampler.Bundle.open(folder), Additions("fp16", None))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


class Zero(nn.Module):
    """As many networks begin: its last layer makes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(x)


@pytest.mark.parametrize("network", [nn.Linear, Zero])
def test_a_decoder_may_end_with_weights(network: type[nn.Module], tmp_path: Path) -> None:
    """Then the last of them is in the lower precision, and what the sampler makes is not."""
    torch.manual_seed(0)
    decoder = edge_sampler.Decoder(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), Output("pose", (3,)))
    inner = Net(1, 1, rank=1) if network is nn.Linear else Zero()
    shape = (1, 4) if network is nn.Linear else (4,)
    decoder = decoder if network is Zero else edge_sampler.Decoder(decoder.module, Output("pose", (1, 3)))
    model = edge_sampler.adapt(inner, shape, "FlowPrecond", decoder=decoder)
    folder = edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=2, solver="ddim"), tmp_path / "b").folder
    for precision in ("fp16", "bf16"):
        add(edge_sampler.Bundle.open(folder), Additions(precision, None))
    bundle = edge_sampler.Bundle.open(folder)
    assert within(compare(bundle, precision="fp16"), None)
    with edge_sampler.load(folder) as exact, edge_sampler.load(folder, precision="fp16") as low:
        difference = np.abs(exact.sample(range(8)) - low.sample(range(8)))
    assert 0 < difference.max() < 0.01
    assert bundle.manifest["precisions"]["bf16"]["largest_error"] > 0


def test_only_a_stage_that_is_there_is_left_out() -> None:
    model = edge_sampler.adapt(Net(1, 1), (1, 8, 8))
    for form, stage in ((edge_sampler.Form(encode=False), "encoder"), (edge_sampler.Form(decode=False), "decoder")):
        with pytest.raises(UserError, match=f"Net has no {stage} to leave out"):
            output_of(model, form)


def test_a_network_that_predicts_too_little_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=r"Net returned \[1, 1, 8, 8\] for x \[1, 3, 8, 8\]"):
        edge_sampler.adapt(Net(3, 1), (3, 8, 8))


def test_ranges_and_errors_are_of_other_examples(tmp_path: Path) -> None:
    """And of more than the few that are compared: what a few of them reach says little of the others."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(100, 2, 8, 8)) * np.linspace(0.1, 3, 100)[:, None, None, None]
    model = edge_sampler.adapt(BesideAnImage(), (1, 8, 8), conditions={"image": IMAGE}, examples={"image": images})
    folder = edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=2, solver="ddim"), tmp_path / "b").folder
    bundle = edge_sampler.Bundle.open(folder)
    fitted, held, every = (
        {row.tobytes() for row in bundle.examples(64, held)["image"]} for held in (False, True, None)
    )
    assert every == fitted | held
    assert min(len(fitted - held), len(held - fitted)) > 8  # some were drawn twice
    known = {row.astype(np.float32).tobytes() for row in images}
    assert every <= known
    assert bundle.examples(4)["image"].tobytes() == bundle.reference()["input_image"].tobytes()


class Centred(nn.Module):
    """Samples change each other, but only at levels that no check asks for."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        between = ((t > 0.05) & (t < 0.55)).float().reshape(-1, 1)
        return 0.9 * x - between * x.mean(0)


class Follows(Centred):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        between = ((t > 0.05) & (t < 0.55)).float().reshape(-1, 1)
        return 0.9 * x - between * (x.cumsum(0) - x)


@pytest.mark.parametrize("samples", [1, 16])
@pytest.mark.parametrize("network", [Centred, Follows])
def test_samples_that_change_each_other_are_found_when_they_are_made(
    network: type[nn.Module], samples: int, tmp_path: Path
) -> None:
    model = edge_sampler.adapt(network(), (4,), "EDMPrecond")
    plan = edge_sampler.fit(model, edge_sampler.Settings(6, "ddim", schedule="edm"))
    with pytest.raises(UserError, match=f"{network.__name__} makes another sample of a seed alone"):
        edge_sampler.export_bundle(model, plan, tmp_path / "bundle", edge_sampler.Form(samples=samples))
    assert not (tmp_path / "bundle").exists()
