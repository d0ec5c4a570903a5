"""Models by name: published shapes, clear refusals, marked dry runs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from edge_sampler import models
from edge_sampler.models import checkpoint
from edge_sampler.models.architecture import build, randomise
from edge_sampler.models.published import EDM_URL
from edge_sampler.models.zoo import DIGITS, WEIGHTS, ZOO
from edge_sampler.runtime.errors import UserError
from tests.conftest import DATA

OFFICIAL = [name for name, row in ZOO.items() if row.source.startswith(EDM_URL)]


def test_every_official_checkpoint_has_a_row(checkpoints: dict[str, Any]) -> None:
    assert {ZOO[name].source.removeprefix(EDM_URL) for name in OFFICIAL} == set(checkpoints)


@pytest.mark.parametrize("name", OFFICIAL)
def test_architectures_have_the_published_shapes(name: str, checkpoints: dict[str, Any]) -> None:
    row = ZOO[name]
    published = checkpoints[row.source.removeprefix(EDM_URL)]
    with torch.device("meta"):
        network = build(row.architecture, name)
    assert row.shapes_sha256 == published["shapes_sha256"]
    assert checkpoint.shapes_sha256(network.state_dict()) == row.shapes_sha256
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


def test_the_shipped_weights_are_small() -> None:
    assert (WEIGHTS / ZOO["edm-digits"].source).stat().st_size <= 4.5e6


def test_an_unknown_name_gets_its_near_matches() -> None:
    with pytest.raises(UserError, match=r"edm-cifar1.*did you mean .*edm-cifar10"):
        models.load("edm-cifar1")


def test_random_weights_are_marked_seeded_and_lively() -> None:
    first, again, other = (models.load("edm-digits", random_weights=True, seed=seed) for seed in (0, 0, 1))
    assert first.spec.random_weights
    assert "random" in first.spec.licence
    assert first.spec.weights_sha256 == again.spec.weights_sha256 != other.spec.weights_sha256
    x = torch.randn(4, *first.spec.shape)
    assert 0.1 < (first(x, 1.0) - first(torch.zeros_like(x), 1.0)).std() < 10


def test_formats_agree(tmp_path: Path) -> None:
    """The same weights as pickle, state dict and safetensors are the same model."""
    model = models.load(str(DATA / "official-format-tiny.pkl"))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    architecture = tmp_path / "tiny.json"
    with np.load(DATA / "edm-ddpmpp-cond.npz") as stored:
        architecture.write_text(str(stored["kwargs"]))
    torch.save({"ema": state}, tmp_path / "tiny.pt")
    safetensors.torch.save_file(state, tmp_path / "tiny.safetensors")
    described = tmp_path / "described.safetensors"
    safetensors.torch.save_file(state, described, {"architecture": architecture.read_text()})
    loaded = [
        models.load(str(architecture), tmp_path / "tiny.pt"),
        models.load(str(architecture), tmp_path / "tiny.safetensors"),
        models.load(str(described)),
    ]
    assert {m.spec.weights_sha256 for m in [model, *loaded]} == {model.spec.weights_sha256}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("model.map_layer0.bias"), "model.map_layer0.bias is missing"),
        (lambda state: state.update(extra=torch.zeros(1)), "extra is surplus"),
        (lambda state: state.update({"model.map_layer0.bias": torch.zeros(3)}), r"\[3\] instead of \[128\]"),
        (lambda state: state["model.map_layer0.bias"].fill_(float("nan")), "NaN or infinity"),
        (lambda state: state.update({"model.map_layer0.bias": torch.zeros(128, dtype=torch.int8)}), "torch.int8"),
    ],
)
def test_weights_of_another_architecture_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(WEIGHTS / "edm-digits.safetensors")
    damage(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        models.load("edm-digits", tmp_path / "w.pt")


def test_improved_ddpm_baselines_load(tmp_path: Path) -> None:
    """EDM's file of that kind holds its noise levels as well, and predicts variances, which nobody needs here."""
    architecture = {
        "precond": "iDDPMPrecond",
        "img_resolution": 8,
        "img_channels": 3,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [4],
    }
    network = build(architecture, "baseline")
    randomise(network, 0)
    (tmp_path / "baseline.json").write_text(json.dumps(architecture))
    torch.save({**network.state_dict(), "u": torch.zeros(1001)}, tmp_path / "w.pt")
    model = models.load(str(tmp_path / "baseline.json"), tmp_path / "w.pt")
    assert model.spec.sigma_max == 80
    x = torch.randn(2, *model.spec.shape)
    assert model(x, 1.0).shape == x.shape


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    content = bytearray((WEIGHTS / "edm-digits.safetensors").read_bytes())
    content[-1001] ^= 1
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        models.load("edm-digits", tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable JSON"),
        ("[]", "object"),
        ('{"precond": "XPrecond"}', "unusable architecture"),
        (json.dumps(DIGITS | {"model_type": "DhariwalUNet", "model_channels": 112}), "shape"),  # 224 channels, 3 heads
        (json.dumps(DIGITS | {"img_resolution": 9}), "Sizes"),  # halved and doubled
        (json.dumps(DIGITS | {"num_blocks": 10**6}), "num_blocks is larger than 256"),  # builds for ever
        (json.dumps(DIGITS | {"channel_mult": [1] * 5000}), "more than 4096 values"),
        (json.dumps(DIGITS | {"model_channels": 10**12}), "model_channels is larger than"),
        (json.dumps(DIGITS | {"model_channels": 0}), "unusable architecture"),
        (json.dumps(DIGITS | {"out_channels": 6}), r"it makes \[6, 8, 8\] of a sample \[1, 8, 8\]"),
        (json.dumps(DIGITS | {"channel_mult": []}), "unusable architecture"),
        (json.dumps(DIGITS | {"channel_mult": [1] * 200, "num_blocks": 200}), "200 levels of 200 blocks make"),
    ],
)
def test_bad_architecture_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        models.load(str(path), random_weights=True)


@pytest.mark.parametrize(
    ("arguments", "limits"),
    [
        ({"sigma_min": 0.05, "sigma_max": 5.0}, (0.05, 5.0)),
        ({"sigma_min": 0.0, "sigma_max": float("inf")}, (0.002, 80.0)),  # what EDM's own snapshots mostly have
        ({"precond": "VEPrecond", "sigma_max": 5.0}, (0.02, 5.0)),
    ],
)
def test_a_network_is_sampled_within_its_own_noise_levels(
    arguments: dict[str, Any], limits: tuple[float, float], tmp_path: Path
) -> None:
    path = tmp_path / "limited.json"
    path.write_text(json.dumps(DIGITS | arguments))
    spec = models.load(str(path), random_weights=True).spec
    assert (spec.sigma_min, spec.sigma_max) == limits


def test_noise_levels_out_of_order_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "limited.json"
    path.write_text(json.dumps(DIGITS | {"sigma_min": 5.0, "sigma_max": 0.5}))
    with pytest.raises(UserError, match=r"sigma_min is 5\.0 and sigma_max 0\.5; they must be in order"):
        models.load(str(path), random_weights=True)
