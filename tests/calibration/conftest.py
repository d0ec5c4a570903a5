"""What tests of several files share."""

import hashlib
from functools import partial
from pathlib import Path

import pytest
import torch

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks import lpips
from tests.calibration import toys


@pytest.fixture(scope="session")
def mixture() -> Denoiser:
    return toys.mixture()


@pytest.fixture
def network(mixture: Denoiser) -> Network:
    return Network(mixture)


@pytest.fixture
def perceptual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package, with weights of its layers, and AlexNet's, none of them the real ones; returns the latter's file."""
    generator = torch.Generator().manual_seed(0)
    empty = lpips.LPIPS()
    layers = {
        f"lin{layer}.model.1.weight": torch.rand(weight.shape, generator=generator)
        for layer, weight in enumerate(empty.weights)
    }
    folder = tmp_path / "packages" / "lpips" / "weights" / "v0.1"
    folder.mkdir(parents=True)
    (tmp_path / "packages" / "lpips" / "__init__.py").write_text("raise SystemExit('it is not to be run')\n")
    torch.save(layers, folder / "alex.pth")
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = tmp_path / "hub" / "checkpoints" / lpips.ALEXNET
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({**lpips.LPIPS().state_dict(), "classifier.1.weight": torch.zeros(3)}, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr(lpips, "load", partial(lpips.load, sha256=sha256))
    return path
