"""Training: seeded, resumable after a kill, and it learns."""

import csv
import gzip
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from edge_sampler import models
from edge_sampler.models.denoiser import Preconditioned
from edge_sampler.models.networks import classifier
from edge_sampler.models.precond import DDPM_SIGMAS
from edge_sampler.models.training import objectives
from edge_sampler.models.training.datasets import DATASETS, FASHION_FOLDER, Dataset, fashion
from edge_sampler.models.training.train import RECIPES, train, untrained
from edge_sampler.runtime.errors import UserError

SHORT = replace(RECIPES["edm-digits"], images_seen=16 * 60, batch=16, warmup_steps=5)


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """Files that grow beyond that cannot be written."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(SHORT, images_seen=16 * 6)
    whole = safetensors.torch.load_file(train("edm-digits", short, tmp_path / "whole", save_every=2))
    loss, calls = objectives.edm, 0

    def killed(*arguments: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(objectives.OF_PRECONDITIONING, "EDMPrecond", killed)
    with pytest.raises(KeyboardInterrupt):
        train("edm-digits", short, tmp_path / "cut", save_every=2)
    for run in ("cut", "whole"):  # its state, and its weights, are larger
        before = contents(tmp_path / run)
        with full_disk(10**6), pytest.raises(OSError, match="File too large"):
            train("edm-digits", short, tmp_path / run, save_every=2)
        assert contents(tmp_path / run) == before, run
    resumed = safetensors.torch.load_file(train("edm-digits", short, tmp_path / "cut", save_every=2))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


def test_it_learns_and_keeps_a_record(tmp_path: Path) -> None:
    weights = train("edm-digits", SHORT, tmp_path)
    with (tmp_path / "losses.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert (tmp_path / "losses.png").exists()
    assert models.load(str(weights)).spec.shape == (1, 8, 8)


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    train("edm-digits", replace(SHORT, images_seen=32), tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        train("edm-digits", replace(SHORT, images_seen=48), tmp_path)


def damage(state: Path, kind: str) -> None:
    content = state.read_bytes()
    told = torch.load(state, weights_only=True)
    others = {name: torch.zeros(3) for name in told["model"]}
    changed: dict[str, Any] = {
        "tensor": torch.zeros(3),
        "no averages": {key: value for key, value in told.items() if key != "averaged"},
        "averages of other shapes": {**told, "averaged": others},
        "weights of other shapes": {**told, "model": others},
        "losses that are text": {**told, "losses": ["0.5"]},
        "a start that is none": {**told, "started_from": None},
    }
    state.unlink()
    if kind in changed:
        torch.save(changed[kind], state)
    elif kind in ("folder", "pipe"):
        state.mkdir() if kind == "folder" else os.mkfifo(state)
    else:
        half = len(content) // 2  # in the weights
        bit = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        state.write_bytes({"empty": b"", "junk": b"junk" * 99, "cut": content[:-99], "bit": bit}[kind])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("edm-digits", replace(SHORT, images_seen=32), tmp_path_factory.mktemp("trained")).parent


STATES = ["empty", "junk", "cut", "bit", "tensor", "no averages", "averages of other shapes", "weights of other shapes"]


@pytest.mark.parametrize("kind", [*STATES, "losses that are text", "a start that is none", "folder", "pipe"])
def test_a_damaged_state_is_told_in_one_line(kind: str, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    damage(run / "state.pt", kind)
    before = contents(run)
    with pytest.raises(
        UserError, match=r"state\.pt (cannot be read as the state of a run|is no file).*; remove "
    ) as told:
        train("edm-digits", replace(SHORT, images_seen=32), run)
    assert "\n" not in str(told.value)
    assert contents(run) == before


@pytest.mark.parametrize("name", ["edm-digits.safetensors", "losses.csv", "losses.png"])
def test_what_no_run_has_made_is_not_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("another's")
    with pytest.raises(UserError, match=rf"{name} exists; choose another place$"):
        train("edm-digits", SHORT, tmp_path)
    assert contents(tmp_path) == {name: b"another's"}


def test_the_metadata_tell_how_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no runs/ is: from the shipped weights
    weights = train("edm-digits", replace(SHORT, images_seen=64, start="edm-digits"), tmp_path)
    with safetensors.safe_open(weights, "pt") as file:
        metadata = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert metadata["images_seen"] == "64"
    assert metadata["started_from"] == models.load("edm-digits").spec.weights_sha256
    assert json.loads(metadata["recipe"])["dataset"] == "digits"
    assert float(metadata["final_loss"]) > 0


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Random images in place of Fashion-MNIST, bright ones of class 1 and dark ones of class 0."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = torch.rand(80, 1, 28, 28, generator=generator) - 1 + labels[:, None, None, None]
    dataset = Dataset(images[:64], labels[:64], images[64:], labels[64:])
    monkeypatch.setitem(DATASETS, "fashion", lambda folder: dataset)
    return dataset


@pytest.mark.parametrize(("name", "place"), [("fashion-classifier", "WEIGHTS"), ("fashion-judge", "JUDGE_WEIGHTS")])
def test_a_classifier_learns_and_says_what_it_makes_of_real_images(
    name: str, place: str, drawn: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPES[name], images_seen=640, batch=32, warmup_steps=2, ema_halflife=100)
    weights = train(name, recipe, tmp_path)
    with safetensors.safe_open(weights, "pt") as file:
        assert float(file.metadata()["heldout_accuracy"]) == 1.0
    monkeypatch.setattr(classifier, place, weights)
    loaded, real, *some = classifier.load() if place == "WEIGHTS" else classifier.load_judge()
    seen = classifier.statistics(classifier.features(loaded, drawn.images))
    torch.testing.assert_close(seen.mean, real.mean, rtol=1e-4, atol=1e-4)
    for known in some:  # to compare with, of images that it was not trained on
        torch.testing.assert_close(known, classifier.features(loaded, drawn.heldout_images), rtol=2e-3, atol=2e-3)


@pytest.mark.usefixtures("drawn")
def test_conditional_and_noise_predicting_models_train(tmp_path: Path) -> None:
    short = {"images_seen": 8, "batch": 4, "start": None}
    for name in ("edm-fashion-cond", "ddim-fashion"):
        weights = train(name, replace(RECIPES[name], **short), tmp_path / name)  # type: ignore[arg-type]
        spec = models.load(str(weights)).spec
        assert spec.classes == (10 if name.endswith("cond") else 0)
        assert spec.sigma_min == pytest.approx(max(0.002, DDPM_SIGMAS[0] if name == "ddim-fashion" else 0.0))


@pytest.mark.parametrize(("sigma", "factor"), [(0.5, 1.0), (80.0, 6400.0)])
def test_errors_at_high_noise_count_more(sigma: float, factor: float) -> None:
    network, objective = untrained("ddim-fashion")  # predicts no noise at first, so that it misses all of it
    assert isinstance(network, Preconditioned)
    assert objective is objectives.ddpm
    missed = objectives.ddpm(network, torch.zeros(16, 1, 28, 28), torch.zeros(16), np.array([sigma]))
    assert missed.item() == pytest.approx(factor, rel=0.1)


def test_a_missing_or_damaged_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no Fashion-MNIST file .*dataset-fashion-mnist"):
        fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(20)))
    with pytest.raises(UserError, match="not a whole Fashion-MNIST file"):
        fashion(tmp_path)


@pytest.mark.skipif(not FASHION_FOLDER.exists(), reason="Fashion-MNIST is not installed")
def test_fashion_is_what_its_paper_says() -> None:
    data = fashion()
    assert data.images.shape == (60_000, 1, 28, 28)
    assert data.heldout_labels.bincount().tolist() == [1000] * 10
    assert [data.images.min().item(), data.images.max().item()] == [-1, 1]


def test_a_tenth_of_the_labels_is_hidden() -> None:
    """Guidance needs a network that knows what to answer without one (arXiv 2207.12598)."""
    told: list[torch.Tensor] = []

    class Told:
        classes, encoder = 10, None
        preconditioning = SimpleNamespace(coefficients=lambda sigma: SimpleNamespace(c_out=torch.ones_like(sigma)))

        def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
            told.append(class_labels)
            return x

    torch.manual_seed(0)
    labels = torch.arange(20_000) % 10
    objectives.weighted_error(Told(), torch.zeros(20_000, 1, 1, 1), labels, torch.ones(20_000))  # type: ignore[arg-type]
    hidden = told[0] < 0
    assert 0.09 < hidden.double().mean() < 0.11
    assert torch.equal(told[0][~hidden], labels[~hidden])


def test_the_average_is_of_what_was_learnt_and_not_of_the_start(tmp_path: Path) -> None:
    """Its memory of the first, random weights is short, whatever its half-life."""
    short = replace(SHORT, images_seen=16 * 30, ema_halflife=10**9)
    train("edm-digits", short, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    torch.manual_seed(short.seed)
    first = untrained("edm-digits")[0].state_dict()
    left = [(state["model"][name] - value).norm() for name, value in state["averaged"].items()]
    moved = [(state["model"][name] - value).norm() for name, value in first.items()]
    assert sum(left) < 0.5 * sum(moved)
