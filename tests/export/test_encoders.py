"""Encoders: whatever they make is exported and right, and an export in eight bits refits behind them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.export.assemble import export_bundle
from edge_sampler.export.extend import Additions, add
from edge_sampler.export.refitted import refitted
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import adapt
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare, within
from tests.export.networks import euler

CONDITION = edge_sampler.Condition
SEEN = {"seen": CONDITION((3,))}
ROWS = np.random.default_rng(0).standard_normal((16, 3)).astype(np.float32)


class Told(nn.Module):
    """Told three numbers, which count where a mask says so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.inner, self.last = nn.Linear(8 + 3, 24), nn.Linear(24, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor, t: Tensor, hint: Tensor, mask: Tensor) -> Tensor:
        told = torch.cat([x, (hint * mask).expand(x.shape[0], -1)], 1)
        made: Tensor = self.last(torch.tanh(self.inner(torch.tanh(self.first(told)))))
        return made


class Halves(nn.Module):
    """Of three numbers: the same doubled, and which are above 0."""

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * seen, seen > 0


class OfALabel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, label: Tensor) -> tuple[Tensor, Tensor]:
        hint = self.table(label)
        return hint, hint.abs() < 1


def behind(encoder: edge_sampler.Encoder | None, examples: dict[str, np.ndarray] | None) -> Denoiser:
    conditions = {"hint": CONDITION((3,)), "mask": CONDITION((3,), "bool")}
    return adapt(Told(), (8,), "EDMPrecond", conditions=conditions, encoder=encoder, examples=examples)


MAKES = ("hint", "mask")
MODELS = {
    "an encoder of numbers": partial(behind, edge_sampler.Encoder(Halves(), SEEN, MAKES), {"seen": ROWS}),
    "an encoder of a label": partial(
        behind, edge_sampler.Encoder(OfALabel(), {"label": CONDITION((), "int64", choices=7)}, MAKES), None
    ),
    "no encoder": partial(behind, None, {"hint": ROWS, "mask": ROWS > 0}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_is_exported_and_eight_bits_are_refitted(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    export_bundle(model, euler([2.0, 0.5]), tmp_path / "b")
    assert within(compare(Bundle.open(tmp_path / "b")), 1e-4)
    settings = edge_sampler.Settings(2, fit_batch=8, heldout=4, refine=1, reference_steps=8)
    add(
        Bundle.open(tmp_path / "b"),
        Additions("int8", None, refit=True),
        partial(refitted, model, NO_CACHE, like=settings),
    )
    bundle = Bundle.open(tmp_path / "b")
    report = bundle.plan_of("int8").report
    assert report is not None
    assert min(report.refinement) <= report.refinement[0]
    assert within(compare(bundle, backends=["onnxrt"], precision="int8"), None)
