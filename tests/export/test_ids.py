"""Ids that a network looks up: their table's rows are found, told by the bundle, and held before every run.

Of ids that are computed none is told, and those in no row make NaN.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import edge_sampler
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.captured import open_blocks
from edge_sampler.export.ids import hold_ids
from edge_sampler.models import loading
from tests.export.networks import answer, euler

PLAN = euler([10.0, 0.5])
Condition = edge_sampler.Condition
EXAMPLES = {"words": np.random.default_rng(0).integers(0, 20, (16, 5))}


class LooksUp(nn.Module):
    """In one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.words, self.kinds, self.few = nn.Embedding(20, 4), nn.Embedding(7, 4), nn.Embedding(5, 4)
        self.table = nn.Parameter(torch.randn(9, 4))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "cat": lambda v: self.words(torch.cat([v.long(), torch.zeros_like(v)], 1)).mean(1),
            "spread": lambda v: self.kinds(v[:, None].expand(-1, 3)).mean(1),
            "hot": lambda v: one_hot(v, 11).float()[:, :4],
            "whole": lambda v: self.kinds(v.int().long().roll(1, 0)),
            "unseen": torch.no_grad()(lambda v: self.kinds(v)),
            "gather": lambda v: self.table[0].expand(v.shape[0], 4).gather(1, v).mean(1, keepdim=True),
            "scatter": lambda v: torch.zeros(v.shape[0], 4).scatter(1, v[:, None], 1.0),
            "index_select": lambda v: self.table.index_select(0, v.flatten()).reshape(-1, 3, 4).mean(1),
            "smaller": lambda v: (self.words(v) + self.few(v.flip(-1))).mean(1),
            "counted_from_the_end": lambda v: self.table[v].mean(1),  # -1 is the last, in PyTorch too
            "guarded": lambda v: self.kinds(torch.where(v < 0, 6, v)).mean(1),
            "without_the_first": lambda v: v[:, :1] * self.words(v[:, 1:]).mean(1),
            "moved": lambda v: self.kinds(v + 1).mean(1),
            "moved_and_not": lambda v: self.kinds(torch.cat([v, 5 - v], 1)).mean(1),
            "rounded": lambda v: self.kinds(v.float().round().long()).mean(1),
            "a_field": lambda v: self.few(v[:, 0]) + self.words(v[:, 1]),
            "moved_gather": lambda v: self.table[0].expand(v.shape[0], 4).gather(1, v[:, :1] + 1),
            "moved_first": lambda v: self.table.index_select(0, v.flatten() + 1).reshape(-1, 3, 4).mean(1),
            "moved_scatter": lambda v: torch.zeros(v.shape[0], 4).scatter(1, v.reshape(v.shape[0], -1) + 1, 1.0),
            "moved_scatter_": lambda v: torch.zeros(v.shape[0], 4).scatter_(1, v + 1, 0.5 * v),
            "moved_scatter_add": lambda v: torch.zeros(v.shape[0], 4).scatter_add(1, v + 1, 0.5 * v),
            "moved_number": lambda v: torch.arange(9).expand(v.shape[0], 9).gather(1, v + 1).sum(1, keepdim=True),
            "every_second": lambda v: self.kinds(v[:, ::2]).mean(1),
            "of_the_batch": lambda v: x.index_select(0, v),
            "moved_select": lambda v: (self.table.T.index_select(1, v.flatten() + 1)).reshape(4, -1, 3).mean(2).T,
            "as_truth": lambda v: self.few(v.bool().long()),
            "of_x": lambda v: v.float().mean(1, keepdim=True) * self.words((x * 0).long()).mean(1),
        }
        return x + ways[self.how](ids)


@pytest.mark.parametrize(
    ("how", "shape", "rows"),
    [
        ("cat", (2, 3), 20),
        ("whole", (2,), 7),
        ("unseen", (2,), 7),
        ("gather", (2, 3), 4),
        ("scatter", (2,), 4),
        ("spread", (2,), 7),
        ("hot", (2,), 11),
        ("index_select", (2, 3), 9),
        ("smaller", (2, 3), 5),
        ("counted_from_the_end", (2, 3), None),
        ("guarded", (2, 3), None),
        ("without_the_first", (2, 3), None),
        ("moved", (2, 3), None),
        ("moved_and_not", (2, 3), 7),
        ("rounded", (2, 3), None),
        ("a_field", (2, 3), None),
        ("moved_scatter", (2,), None),
        ("moved_number", (2, 3), None),
        ("every_second", (2, 3), None),
        ("of_the_batch", (2,), None),
        ("as_truth", (2,), None),
        ("of_x", (2, 3), None),
    ],
)
def test_rows_are_those_of_the_table(how: str, shape: tuple[int, ...], rows: int | None) -> None:
    """Only where every value is looked up as it is: any other is a number like all."""
    batch, ids = {0: torch.export.Dim.DYNAMIC}, torch.zeros(shape, dtype=torch.int64)
    program = torch.export.export(LooksUp(how), (torch.zeros(2, 4), ids), dynamic_shapes=(batch, batch), strict=False)
    open_blocks(program)
    assert hold_ids(program) == ({} if rows is None else {1: rows})


@pytest.mark.parametrize(
    ("how", "right", "wrong"),
    [
        ("moved", [-1, 5, 0], [-2, 0, 0]),
        ("moved", [-1, 5, 0], [0, 6, 0]),  # of 7 rows
        ("moved_and_not", [1, 5, 3], [1, 6, 3]),
        ("moved_select", [-1, 7, 0], [0, 0, -2]),
        ("moved_first", [-1, 7, 0], [0, 8, 0]),
        ("moved_scatter", [-1, 2, 0], [0, 3, 0]),
        ("moved_scatter", [-1, 2, 0], [-2, 0, 0]),
        ("moved_scatter_", [-1, 2, 0], [-2, 0, 1]),
        ("moved_scatter_add", [-1, 2, 0], [-2, 0, 0]),
        ("moved_gather", [-1, 0, 0], [-2, 0, 0]),
        ("rounded", [0, 6, 3], [0, -1, 3]),
        ("a_field", [0, 19, -1], [0, -1, 0]),
        ("without_the_first", [-5, 19, 0], [0, -1, 0]),
        ("counted_from_the_end", [-9, 8, 0], None),
        ("guarded", [-1, 6, 0], None),
    ],
)
def test_what_is_in_no_row_is_nan(how: str, right: list[int], wrong: list[int] | None) -> None:
    """Of that sample alone; PyTorch refuses it."""
    torch.manual_seed(0)

    class Network(LooksUp):
        def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, ids)

    made = edge_sampler.adapt(Network(how), (4,), "FlowPrecond", conditions={"ids": Condition((3,), "int64")})
    ids, x = torch.tensor([right, wrong or right]), torch.zeros(2, 4)
    found = answer(made, x, ids=ids)
    np.testing.assert_allclose(found[0], made(x[:1], 1.0, ids=ids[:1])[0], rtol=1e-5)
    if wrong:
        assert np.isnan(found[1]).any()
        with pytest.raises((IndexError, RuntimeError), match=r"(?i)ind"):
            made(x, 1.0, ids=ids)


class Writes(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, ids: Tensor) -> Tensor:
        return self.function(torch.zeros(4, 3), ids + 1)


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda rows, ids: rows.index_add(0, ids, torch.ones(2, 3)), True),
        (lambda rows, ids: rows.T.index_copy_(1, ids, torch.ones(3, 2)), True),
        (lambda rows, ids: rows.scatter_(0, ids[:, None], 2.0), True),
        (lambda rows, ids: rows.scatter(0, ids[:, None], torch.ones(2, 3)), False),  # of which one column is written
    ],
)
def test_what_is_written_to_no_row_is_nan(function: Callable[[Tensor, Tensor], Tensor], told: bool) -> None:
    network, right = Writes(function), torch.tensor([-1, 1])
    program = torch.export.export(network, (right,), strict=False)
    assert hold_ids(program) == {}
    program.graph_module.recompile()
    torch.testing.assert_close(program.module()(right), network(right), rtol=0, atol=0)
    if told:
        assert program.module()(torch.tensor([-2, 1])).isnan().any()


class Talks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kinds = nn.Embedding(7, 4)

    def forward(self, x: Tensor, t: Tensor, said: Tensor, kind: Tensor) -> Tensor:
        return 0.1 * x + said.mean(1) + self.kinds(kind)


class Words(nn.Embedding):
    def __init__(self) -> None:
        super().__init__(20, 4)

    @torch.no_grad()  # as of encoders that are not trained
    def forward(self, words: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(words),)


def model() -> edge_sampler.Denoiser:
    """Guided, and with an encoder; ``kind`` may be 3 at most, of 7 rows, and 6 is its null."""
    conditions = {"said": Condition((5, 4)), "kind": Condition((), "int64", null=6, choices=4)}
    encoder = edge_sampler.Encoder(Words(), {"words": Condition((5,), "int64")}, ("said",))
    plain = edge_sampler.adapt(Talks(), (4,), "DDPMPrecond", conditions=conditions, encoder=encoder, examples=EXAMPLES)
    return edge_sampler.guided(plain, 2.0)


def test_a_bundle_tells_and_holds_them(tmp_path: Path) -> None:
    edge_sampler.export_bundle(model(), PLAN, tmp_path / "bundle")
    bundle = edge_sampler.Bundle.open(tmp_path / "bundle")
    found = {name: (one.ids, one.wanted()) for name, one in bundle.inputs.conditions.items()}
    assert found == {"words": (20, "int64 [5], 0 to 19"), "kind": (0, "int64 [], 0 to 3 or 6")}
    with edge_sampler.load(tmp_path / "bundle") as sampler:
        assert sampler.sample([0], words=[0, 19, 1, 2, 3], kind=6).shape == (1, 4)
        for wrong in (-1, 20):
            with pytest.raises(edge_sampler.UserError, match=f"words holds {wrong}, which is out of range"):
                sampler.sample([0], words=[0, 1, wrong, 2, 3], kind=0)


def test_a_bundle_made_of_a_bundle_tells_them_too(tmp_path: Path) -> None:
    """Its graphs take the place of what looks up."""
    edge_sampler.export_bundle(model(), PLAN, tmp_path / "first")
    again = loading.load(str(tmp_path / "first" / "denoiser.onnx"))
    edge_sampler.with_examples(again, EXAMPLES)
    edge_sampler.export_bundle(again, PLAN, tmp_path / "second")
    first, second = (edge_sampler.Bundle.open(tmp_path / name).inputs for name in ("first", "second"))
    assert first == second
    assert second.conditions["words"].ids == 20


@pytest.mark.parametrize("null", [-1, 7, [0, 7, 1]])
def test_a_null_is_in_a_row(null: int | list[int]) -> None:
    class Network(LooksUp):
        def forward(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:  # type: ignore[override]
            return x + self.kinds(ids).mean(1)

    conditions = {"ids": Condition((3,), "int64", null=null)}
    made = edge_sampler.adapt(Network(""), (4,), "FlowPrecond", conditions=conditions)
    with pytest.raises(edge_sampler.UserError, match=r"ids is looked up in a table of 7 rows, and its null, "):
        export_graphs(made)
