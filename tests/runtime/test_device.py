"""What a device does with bundles; CI runs it without PyTorch too, on Python 3.10 and the oldest ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare, within
from tests.bundles import BUNDLES
from tests.conftest import bundle, run_main


@pytest.fixture(scope="module", params=BUNDLES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(request.param, tmp_path_factory)


def test_every_path_makes_what_pytorch_made(folder: Path) -> None:
    found = compare(Bundle.open(folder))
    assert "PyTorch" in {difference.second for difference in found}
    assert within(found, None)


def test_what_is_made_follows_its_condition(folder: Path, tmp_path: Path) -> None:
    conditions = Bundle.open(folder).inputs.conditions
    values = ("a red heart", "a blue star") if "prompt" in conditions else ("0", "1")
    made = []
    for value in values:
        out = tmp_path / f"{value}.npz"
        told = ["--condition", f"{next(iter(conditions))}={value}"] if conditions else []
        run_main(main, "sample", str(folder), "--seeds", "0-1", *told, "--out", str(out))
        with np.load(out) as stored:
            made.append(stored["images"].astype(float))
    assert np.isfinite(made).all()
    assert (np.abs(made[0] - made[1]).max() > 0) == bool(conditions)
