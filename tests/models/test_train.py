"""Training: seeded, resumable after a kill, and it learns."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import models
from models import train as training
from models.train import RECIPES, train
from runtime.errors import UserError

SHORT = replace(RECIPES["digits"], images_seen=16 * 60, batch=16, warmup_steps=5)


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SHORT, images_seen=16 * 6)
    whole = safetensors.torch.load_file(train("digits", short, tmp_path / "whole", save_every=2))
    loss, calls = training.edm_loss, 0

    def killed(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "edm_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        train("digits", short, tmp_path / "cut", save_every=2)
    resumed = safetensors.torch.load_file(train("digits", short, tmp_path / "cut", save_every=2))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_it_learns_and_keeps_a_record(tmp_path: Path) -> None:
    weights = train("digits", SHORT, tmp_path)
    with (tmp_path / "losses.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert (tmp_path / "losses.png").exists()
    assert models.load(str(weights)).spec.shape == (1, 8, 8)


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    train("digits", replace(SHORT, images_seen=32), tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        train("digits", replace(SHORT, images_seen=48), tmp_path)
