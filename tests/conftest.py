"""What several rooms' tests share."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import models
from calibration.network import Network
from export.denoiser import export_denoiser
from models.precond import Denoiser
from runtime.noise import unit_noise

DATA = Path(__file__).parent / "data"
GOLDEN = tuple(sorted(path.stem for path in DATA.glob("*cond.npz")))


@dataclass(frozen=True)
class Golden:
    """One network of the original implementation, rebuilt as ours, and what the original computed."""

    model: Denoiser
    arrays: dict[str, np.ndarray]
    labels: torch.Tensor | None  # int64 [n]


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    with np.load(DATA / f"{request.param}.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    architecture, weights = tmp_path / f"{request.param}.json", tmp_path / "weights.pt"
    architecture.write_text(str(arrays["kwargs"]))
    state = {name.removeprefix("state/"): torch.tensor(a) for name, a in arrays.items() if name.startswith("state/")}
    torch.save(state, weights)
    labels = torch.tensor(arrays["class_labels"].argmax(1)) if "class_labels" in arrays else None
    return Golden(models.load(str(architecture), weights), arrays, labels)


@pytest.fixture(scope="session")
def digits() -> Denoiser:
    return models.load("edm-digits")


@pytest.fixture(scope="session")
def digits_graph(digits: Denoiser) -> ir.Model:
    return export_denoiser(digits)


@pytest.fixture(scope="session")
def noise(digits: Denoiser) -> torch.Tensor:
    """Unit noise of seeds 0 to 3, float64."""
    return torch.from_numpy(unit_noise(range(4), digits.spec.shape)).double()


@pytest.fixture
def network(digits: Denoiser) -> Network:
    return Network(digits)


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Any]:
    """The published facts of the nine official files."""
    facts: dict[str, Any] = json.loads((DATA / "official_checkpoints.json").read_text())
    return facts


@pytest.fixture
def coarse_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference of few steps, for tests of which the answer does not depend on it."""
    monkeypatch.setattr("calibration.reference.REFERENCE_STEPS", 24)
    monkeypatch.setattr("calibration.calibrate.REFERENCE_STEPS", 24)


def relative(found: Any, expected: Any) -> float:
    """Largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())
