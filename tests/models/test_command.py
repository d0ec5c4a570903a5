"""What the commands say of models is so."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from edge_sampler import models
from edge_sampler.models import listing
from edge_sampler.models.command import main
from edge_sampler.models.download import cached
from edge_sampler.models.families import libraries
from edge_sampler.models.verify import denoising_errors, verify
from edge_sampler.models.zoo import GROUPS, ZOO
from edge_sampler.runtime import install
from edge_sampler.runtime.errors import BoundError, UserError
from tests.conftest import run_main

ROOT = Path(__file__).parent.parent.parent


def test_the_list_names_every_model_and_what_is_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path))
    kept = cached(ZOO["edm-ffhq"].source)
    kept.parent.mkdir(parents=True)
    kept.touch()
    run_main(main, "list")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(ZOO) < set(lines)
    assert " shipped" in lines["edm-fashion-cond"]
    assert " 10 " in lines["edm-fashion-cond"]
    assert " not downloaded" in lines["edm-cifar10"]
    assert " 55.7 M " in lines["edm-cifar10"]  # as published
    assert " downloaded" in lines["edm-ffhq"]
    assert " not downloaded" not in lines["edm-ffhq"]


def test_a_missing_package_marks_rows_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    listing.counted.cache_clear()
    run_main(main, "list")
    listing.counted.cache_clear()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert set(ZOO) < set(lines)
    assert {name for name in ZOO if "needs diffusers " in lines[name]} == set(GROUPS[-1].rows)
    assert "Weights" in lines


def test_without_docstrings_there_are_no_networks_of_diffusers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers reads its own, and raises where they are left out."""
    monkeypatch.setattr(install, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    listing.counted.cache_clear()
    run_main(main, "list")
    listing.counted.cache_clear()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.split()}
    assert {name for name in ZOO if " ? " in lines[name]} == set(GROUPS[-1].rows)
    with pytest.raises(UserError, match=r"leaves out docstrings .*, and transformers does not load without"):
        libraries.module("transformers")


def test_the_list_needs_the_runtime_alone() -> None:
    program = """
import sys
sys.modules |= dict.fromkeys(["torch", "filelock", "onnx", "onnx_ir", "rich", "safetensors"])
sys.argv[1:] = ["list"]
from edge_sampler.models.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.split()}
    assert done.returncode == 0, done.stderr
    assert set(ZOO) < set(lines)
    assert all("needs torch" in lines[name] for name in ZOO)
    assert "Weights" in lines


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if "://" not in row.source])
def test_shipped_models_remove_noise(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_main(main, "verify", name)
    assert models.load(name).spec.weights_sha256 in capsys.readouterr().out


def test_untrained_weights_are_told(tmp_path: Path) -> None:
    for model in (models.load("edm-digits", random_weights=True), models.load("ddim-fashion", random_weights=True)):
        with pytest.raises(BoundError, match="untrained"):
            verify(model)
    shuffled = models.load("edm-digits")
    state = {key: value.flip(0) for key, value in shuffled.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "flipped.safetensors")
    with pytest.raises(BoundError, match="edm-digits leaves more noise"):
        run_main(main, "verify", "edm-digits", "--weights", str(tmp_path / "flipped.safetensors"))


def test_a_model_of_nan_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    model = models.load("edm-fashion-cond")
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(BoundError, match=r"^edm-fashion-cond returned NaN or infinity at noise level 80; its "):
        verify(model)
    assert "takes class_labels: int64 [], 0 to 9 or -1\n" in capsys.readouterr().out


def test_a_perfect_denoiser_of_black_images_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load("edm-digits")
    monkeypatch.setattr(model, "forward", lambda x, sigma: torch.zeros_like(x))
    assert max(denoising_errors(model).values()) == 0.0
