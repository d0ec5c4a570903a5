"""What the commands say of models is so."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from edge_sampler import models
from edge_sampler.models.command import denoising_errors, main, verify
from edge_sampler.models.download import cached
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.errors import BoundError
from tests.conftest import run_main


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


def test_a_perfect_denoiser_of_black_images_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.load("edm-digits")
    monkeypatch.setattr(model, "forward", lambda x, sigma: torch.zeros_like(x))
    assert max(denoising_errors(model).values()) == 0.0
