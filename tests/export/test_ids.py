"""Ids that a network looks up: their table's rows are found, told by the bundle, and held before every run."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import edge_sampler
from edge_sampler.export.ids import rows_of
from edge_sampler.models import loading
from tests.export.networks import euler

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
            "index_select": lambda v: self.table.index_select(0, v.flatten()).reshape(-1, 3, 4).mean(1),
            "smaller": lambda v: (self.words(v) + self.few(v.flip(-1))).mean(1),
            "counted_from_the_end": lambda v: self.table[v].mean(1),  # -1 is the last, in PyTorch too
            "guarded": lambda v: self.kinds(torch.where(v < 0, 6, v)).mean(1),
            "without_the_first": lambda v: v[:, :1] * self.words(v[:, 1:]).mean(1),
            "moved": lambda v: self.kinds(v + 1).mean(1),
            "of_x": lambda v: v.float().mean(1, keepdim=True) * self.words((x * 0).long()).mean(1),
        }
        return x + ways[self.how](ids)


@pytest.mark.parametrize(
    ("how", "shape", "rows"),
    [
        ("cat", (2, 3), 20),
        ("spread", (2,), 7),
        ("hot", (2,), 11),
        ("index_select", (2, 3), 9),
        ("smaller", (2, 3), 5),
        ("counted_from_the_end", (2, 3), None),
        ("guarded", (2, 3), None),
        ("without_the_first", (2, 3), None),
        ("moved", (2, 3), None),
        ("of_x", (2, 3), None),
    ],
)
def test_rows_are_those_of_the_table(how: str, shape: tuple[int, ...], rows: int | None) -> None:
    """Only where every value is looked up as it is: any other is a number like all."""
    batch, ids = {0: torch.export.Dim.DYNAMIC}, torch.zeros(shape, dtype=torch.int64)
    program = torch.export.export(LooksUp(how), (torch.zeros(2, 4), ids), dynamic_shapes=(batch, batch), strict=False)
    assert rows_of(program) == ({} if rows is None else {1: rows})


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
