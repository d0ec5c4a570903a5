"""Graphs are tried before a fit: whether they are valid, and compute what PyTorch does, at several sizes of axes."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, pad

import edge_sampler
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.check import SEVERAL, check_nodes, several, tried
from edge_sampler.runtime.condition import Axis


class Pools(nn.Module):
    """Its export fixes how many places one mean is of."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + adaptive_avg_pool1d(x, 2).square().mean(-1, keepdim=True)


class Counts(nn.Module):
    """Knows eight places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + self.places(torch.arange(x.shape[2])).mT


@pytest.mark.parametrize(
    ("make", "axis", "message"),
    [
        (Pools, (4, 8, 8), "Pools's graph is not what PyTorch computes at length 4: .* denoised is off by"),
        (Pools, (8, 8, 32), "Pools's graph is not what PyTorch computes at length 32: .* denoised is off by"),
        (Counts, (2, 4, 16), "Counts fails at length 16, so give axes sizes that it takes: index out of range"),
    ],
)
def test_graphs_are_tried_at_other_sizes(make: Any, axis: tuple[int, ...], message: str) -> None:
    model = edge_sampler.adapt(make(), (2, "length"), "DDPMPrecond", axes={"length": axis})
    with pytest.raises(edge_sampler.UserError, match=message):
        export_graphs(model)


class Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return adaptive_avg_pool1d(x, 2)


class First(Last):
    def forward(self, wide: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(wide),)


class Told(nn.Module):
    def forward(self, x: Tensor, t: Tensor, pooled: Tensor) -> Tensor:
        return x + pooled.mean((1, 2), keepdim=True)


def test_stages_are_tried_at_other_sizes() -> None:
    axes = {"length": (4, 8, 32)}
    decoder = edge_sampler.Decoder(Last(), edge_sampler.Output("pooled", (2, 2)))
    with pytest.raises(edge_sampler.UserError, match="Plain's decoder's graph is not what PyTorch computes at length"):
        export_graphs(edge_sampler.adapt(Plain(), (2, "length"), axes=axes, decoder=decoder))
    told = {"pooled": edge_sampler.Condition((2, 2))}
    encoder = edge_sampler.Encoder(First(), {"wide": edge_sampler.Condition((2, "2*length"))}, ("pooled",))
    with pytest.raises(edge_sampler.UserError, match="Told's encoder's graph is not what PyTorch computes at length"):
        export_graphs(edge_sampler.adapt(Told(), (2, "length"), axes=axes, conditions=told, encoder=encoder))


class Plain(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + t[:, None, None]


class Refused(Plain):
    def __init__(self, part: Any) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.part(x)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda x: ((x > 0) + (x < 1)).float(), "PyTorch's export of Refused is no valid graph: .*bool"),
        (
            lambda x: torch.relu(x.clamp(max=-0.5)) + 0.5,  # which the exporter takes for a clamp to 0 and -0.5
            "Refused's graph is not what PyTorch computes: let the network compute it in another way: denoised is off",
        ),
    ],
)
def test_a_users_graph_is_tried_at_once(part: Any, message: str) -> None:
    with pytest.raises(edge_sampler.UserError, match=message):
        export_graphs(edge_sampler.adapt(Refused(part), (2, 3)))
    axes = {"length": (2, 4, 4)}
    with pytest.raises(edge_sampler.UserError, match=message):
        export_graphs(edge_sampler.adapt(Refused(part), (2, "length"), axes=axes))


def test_what_is_run_for_some_values_only_is_told() -> None:
    branch = ir.AttrGraph("then_branch", ir.Graph([], [], nodes=[], opset_imports={"": 21}))
    graph = ir.Graph([], [], nodes=[ir.Node("", "If", [None], [branch])], opset_imports={"": 21})
    with pytest.raises(edge_sampler.UserError, match=r"It runs a part of itself for some values only \(If\), which no"):
        check_nodes(graph, "It")


def test_what_is_no_number_at_another_size_is_told() -> None:
    def part(x: Tensor) -> Tensor:
        return 1 / (torch.ones_like(x).sum(-1, keepdim=True) - 4)

    with pytest.raises(edge_sampler.UserError, match="Refused makes NaN or infinity at length 4, so give axes sizes"):
        export_graphs(edge_sampler.adapt(Refused(part), (2, "length"), axes={"length": (4, 8, 8)}))
    export_graphs(edge_sampler.adapt(Refused(lambda x: x / 0), (2, 3)))  # a fit says it, if it has such conditions


def test_a_graph_of_few_bits_may_be_off_by_more() -> None:
    export_graphs(edge_sampler.adapt(Refused(lambda x: (x.half().exp() * 3).float()), (2, 3)))


def windowed(x: Tensor) -> Tensor:
    """As Swin's, which pads only where it has to."""
    left = x.shape[2] % 8
    return pad(x, (0, 0, 0, 8 - left)).cumsum(2)[:, :, : x.shape[2]] if left else x.cumsum(2).roll(1, 2)


@pytest.mark.parametrize(
    ("part", "at"),
    [
        (windowed, "height 12, width 6"),
        (lambda x: x * (2 if x.shape[2] > 2 * x.shape[3] else 1), "height 16, width 6"),
        (lambda x: x * (2 if x.shape[2] * x.shape[3] > 300 else 1), "height 16, width 19"),
        (lambda x: x * 1 if x.shape[2] % 8 else 1 * x, None),  # the same either way
    ],
)
def test_sizes_that_a_network_decides_by_are_tried(part: Any, at: str | None) -> None:
    axes = {"height": (8, 8, 16, 4), "width": (6, 8, 20)}
    model = edge_sampler.adapt(Refused(part), (2, "height", "width"), axes=axes)
    if at is None:
        export_graphs(model)
    else:
        with pytest.raises(edge_sampler.UserError, match=f"not what PyTorch computes at {at}: "):
            export_graphs(model)


def test_so_many_sizes_are_asked_about() -> None:
    few = {"height": Axis(8, 8, 16, 4), "width": Axis(1, 1, 2)}
    assert [tuple(sizes.values()) for sizes in several(few)] == [(8, 1), (12, 1), (8, 2), (16, 1), (12, 2), (16, 2)]
    many = several({"height": Axis(8, 8000, 8000, 8), "width": Axis(1, 2000, 2000)})
    assert len(many) == SEVERAL
    assert all(sizes["height"] % 8 == 0 for sizes in many)
    assert len({sizes["width"] for sizes in many}) > 1000
    large = several({"length": Axis(1, 600, 60_000)})  # of which others take long
    assert [sizes["length"] for sizes in large] == list(range(1, 1201))


def test_sizes_that_are_tried() -> None:
    """The least and the largest, but what is much larger than usual only as far as that is cheap."""
    assert list(tried({})) == []
    assert list(tried({"length": Axis(8, 8, 8)})) == []
    assert list(tried({"length": Axis(4, 8, 8)})) == [{"length": 4}]
    assert list(tried({"length": Axis(8, 8, 1000)})) == [{"length": 1000}]
    assert list(tried({"length": Axis(8, 8, 5000, 8)})) == [{"length": 1024}]
    assert list(tried({"length": Axis(1000, 2000, 50_000)})) == [{"length": 1000}, {"length": 4000}]
    sizes = {"height": Axis(64, 64, 256, 8), "width": Axis(32, 64, 256, 8)}
    assert list(tried(sizes)) == [
        {"height": 64, "width": 32}, {"height": 128, "width": 64}, {"height": 64, "width": 128}
    ]  # fmt: skip


class Coarse(nn.Module):
    """Holds its weights, and computes, in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6).half()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        made = self.layer((1.5 * x.flatten(1)).half()).sin().float().reshape(x.shape)
        return x / (1 + sigma.reshape(-1, 1, 1) ** 2) + made


def test_a_network_of_few_bits_is_exported(tmp_path: Path) -> None:
    """Its graph rounds elsewhere: what `adapt` lets pass is not refused after the fit."""
    torch.manual_seed(0)
    model = edge_sampler.adapt(Coarse(), (2, 3))
    exported = edge_sampler.export_bundle(model, calibrate(model, Settings(4, "ipndm")), tmp_path / "b")
    assert 1e-3 < exported.difference.relative < 0.05
