"""OpenAI's checkpoints: their own networks' answers, from tensors of their names and order."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sampler import models
from edge_sampler.models.architecture import build
from edge_sampler.models.denoiser import Preconditioned
from edge_sampler.models.guided_diffusion import MARK
from edge_sampler.models.published import OPENAI_URL, adm, iddpm
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.errors import UserError
from tests.conftest import DATA, Parity, relative

SMALL: dict[str, dict[str, Any]] = {
    "cond-new": adm(
        16, [1, 2], 5, model_channels=128, num_blocks=1, attn_resolutions=[8], new_attention_order=True,
        beta_schedule="squaredcos_cap_v2",
    ),
    "uncond-legacy": adm(16, [1, 1], model_channels=128, attn_resolutions=[16, 8]),
}  # fmt: skip


IMPROVED: dict[str, dict[str, Any]] = {
    "uncond": iddpm(16, [1, 2], num_blocks=1, attn_resolutions=[8]),
    "cond": iddpm(
        16, [1, 1], 5, num_blocks=2, attn_resolutions=[16, 8], num_heads=2, use_scale_shift_norm=False,
        beta_schedule="linear", beta_start=5e-5, beta_end=0.01, num_train_timesteps=2000, rescale_timesteps=False,
    ),
}  # fmt: skip


def values(name: str, shape: list[int]) -> np.ndarray:
    """The tensor that tests/data/README.md gives to a name, as the golden file's maker did."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return drawn / np.float32(math.sqrt(math.prod(shape[1:])))
    return 1 + drawn / 10 if name.endswith("weight") else drawn / 10


def state(golden: Any, key: str) -> dict[str, torch.Tensor]:
    parts = [re.fullmatch(r"(\S+) (\[.*\])", line) for line in golden[f"{key}/names"]]
    return {part[1]: torch.from_numpy(values(part[1], json.loads(part[2]))) for part in parts if part}


@pytest.fixture(scope="module")
def golden() -> Any:
    return np.load(DATA / "guided-diffusion.npz")


@pytest.mark.parametrize("key", SMALL)
def test_networks_answer_as_their_own_code_does(key: str, golden: Any, tmp_path: Path, parity: Parity) -> None:
    torch.save(state(golden, key), tmp_path / "weights.pt")
    (tmp_path / "small.json").write_text(json.dumps(SMALL[key]))
    model = models.load(str(tmp_path / "small.json"), tmp_path / "weights.pt")
    assert isinstance(model, Preconditioned)
    x, t, y = (torch.from_numpy(golden[f"{key}/{name}"]) for name in ("x", "t", "y"))
    told = [torch.nn.functional.one_hot(y, 5).float()] if model.spec.classes else []
    difference = relative(model.model(x, t.float(), *told), torch.from_numpy(golden[f"{key}/out"]))
    parity("guided-diffusion", f"{key}, the network's answer", difference, 1e-5)


@pytest.mark.parametrize("key", IMPROVED)
def test_improved_networks_denoise_as_their_own_code_does(key: str, tmp_path: Path, parity: Parity) -> None:
    """Their clean image at step t is ours at that step's noise level: so the schedule and what is told are theirs."""
    golden = np.load(DATA / "improved-diffusion.npz")
    torch.save(state(golden, key), tmp_path / "weights.pt")
    (tmp_path / "small.json").write_text(json.dumps(IMPROVED[key]))
    model = models.load(str(tmp_path / "small.json"), tmp_path / "weights.pt")
    kept = torch.from_numpy(golden[f"{key}/alphas_cumprod"])
    x = torch.from_numpy(golden[f"{key}/x"]) / kept.sqrt().float()[:, None, None, None]
    told = {"class_labels": torch.from_numpy(golden[f"{key}/y"])} if model.spec.classes else {}
    found = model(x, (1 / kept - 1).sqrt().float(), **told)
    for step, ours, theirs in zip(golden[f"{key}/t"], found, golden[f"{key}/pred_xstart"], strict=True):
        parity("improved-diffusion", f"{key}, clean images at step {step}", relative(ours, theirs), 1e-5)


def test_a_checkpoint_of_another_architecture_is_refused(golden: Any, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text(json.dumps(SMALL["cond-new"]))
    torch.save(state(golden, "uncond-legacy"), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="do not fit the architecture of small"):
        models.load(str(tmp_path / "small.json"), tmp_path / "weights.pt")
    torch.save({MARK: torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="do not fit the architecture of small"):
        models.load(str(tmp_path / "small.json"), tmp_path / "weights.pt")


PUBLISHED = {
    "adm-imagenet64": 296,
    "adm-imagenet128": 422,
    "adm-imagenet256": 554,
    "adm-imagenet512": 559,
    "adm-lsun-cat": 552,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_rows_have_the_published_size(name: str) -> None:
    """arXiv 2105.05233, table 13: millions of parameters."""
    assert ZOO[name].source.startswith(OPENAI_URL)
    with torch.device("meta"):
        model = build(ZOO[name].architecture, name)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=1)


def test_the_improved_row_of_classes_has_its_size() -> None:
    """270M, says improved-diffusion's README; of the others it names no parameters."""
    with torch.device("meta"):
        model = build(ZOO["iddpm-imagenet64-cond"].architecture, "iddpm-imagenet64-cond")
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(270, rel=0.02)
