"""``python -m runtime sample``: what a sampler is told, and what is written of what it makes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sampler.runtime import command
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command import main
from edge_sampler.runtime.condition import CLASSES
from edge_sampler.runtime.errors import BoundError, UserError
from tests.conftest import run_main
from tests.runtime.small_bundles import HINT, LABELS, inputs_of, keys_asked, pictures


class Sampler:
    """Makes of a seed a picture that is as bright, and remembers."""

    told: list[Any]
    made: np.ndarray | None = None

    def __init__(self, *told: Any) -> None:
        self.told.append(told[1:])
        self.description = "by hand"

    def sample(
        self, seeds: Sequence[int], batch: int | None, temperature: float | None, **conditions: Any
    ) -> np.ndarray:
        self.told.append((list(seeds), batch, temperature, conditions))
        return (
            np.stack([np.full((1, 2, 3), seed / 10, np.float32) for seed in seeds]) if self.made is None else self.made
        )

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a sampler was told: how it is opened, and what it makes."""
    Sampler.told, Sampler.made = [], None
    monkeypatch.setattr(command, "Sampler", Sampler)
    return Sampler.told


def sampled(bundle: Bundle, out: str = "a.npz", *arguments: str) -> Path:
    path = bundle.folder.parent / out
    assert run_main(main, "sample", str(bundle.folder), "--out", str(path), *arguments) == 0
    return path


def test_what_a_sampler_is_told(
    tmp_path: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, keys = pictures(tmp_path), keys_asked(monkeypatch)
    path = sampled(bundle)
    assert capsys.readouterr().out == f"{path}: 16 images, by by hand\n"
    asked = ("--seeds", "3,7", "--temperature", "0.5", "--batch", "9", "--backend", "onnxrt", "--precision", "fp16")
    path = sampled(bundle, "b.npz", *asked, "--condition", "n=1", "--condition", "m=2,3", "--verify-key", "k.pub")
    assert told == [
        ("auto", None),
        (list(range(16)), None, None, {}),
        ("onnxrt", "fp16"),
        ([3, 7], 9, 0.5, {"n": 1, "m": [2, 3]}),
    ]
    assert keys == [None, Path("k.pub")]
    with np.load(path) as stored:
        assert stored["seeds"].tolist() == [3, 7]
        np.testing.assert_array_equal(stored["images"][1], np.full((1, 2, 3), 0.7, np.float32))


def test_classes_are_one_or_one_for_each_seed(tmp_path: Path, told: list[Any]) -> None:
    bundle = pictures(tmp_path, inputs=inputs_of(1, 2, 3, **{CLASSES: LABELS}))
    sampled(bundle, "a.npz", "--seeds", "0-1", "--class-labels", "3")
    sampled(bundle, "b.npz", "--seeds", "0-1", "--class-labels", "3,4")
    with pytest.raises(UserError, match="names 3 classes for 2 seeds"):
        sampled(bundle, "c.npz", "--seeds", "0-1", "--class-labels", "3-5")
    assert [made[3] for made in told[1::2]] == [{CLASSES: [3]}, {CLASSES: [3, 4]}]


def test_classes_of_a_bundle_without_are_left_to_its_inputs(tmp_path: Path, told: list[Any]) -> None:
    sampled(pictures(tmp_path), "a.npz", "--seeds", "0-1", "--class-labels", "3-5")
    assert told[1][3] == {CLASSES: [3, 4, 5]}


def test_a_text_is_taken_as_it_is(tmp_path: Path, told: list[Any]) -> None:
    text = {**HINT, "dtype": "int64", "text": {"file": "t.json", "default": None, "follows": ""}}
    bundle = pictures(tmp_path, inputs=inputs_of(1, 2, 3, prompt=text, hint=HINT), files=["t.json"])
    sampled(bundle, "a.npz", "--condition", "prompt=1,2", "--condition", "hint=1,2")
    assert told[1][3] == {"prompt": "1,2", "hint": [1, 2]}


@pytest.mark.parametrize("name", ["self", "seeds", "batch", "temperature"])
def test_an_argument_of_the_sampler_is_no_condition(name: str, tmp_path: Path, told: list[Any]) -> None:
    """What `sample` wrote has seeds, for one."""
    bundle = pictures(tmp_path, inputs=inputs_of(1, 2, 3, hint=HINT))
    np.savez(tmp_path / "made.npz", **{name: np.array([3])})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"unknown condition '{name}': this sampler takes hint$"):
        sampled(bundle, "a.npz", "--condition", str(tmp_path / "made.npz"))
    assert not told


@pytest.mark.parametrize("random_weights", [False, True])
def test_a_grid_is_a_picture(random_weights: bool, tmp_path: Path, told: list[Any]) -> None:
    path = sampled(pictures(tmp_path, model={"random_weights": random_weights}), "a.png", "--seeds", "0-3")
    with Image.open(path) as picture:
        red = np.asarray(picture.convert("RGB")).astype(int)
        assert picture.width > picture.height > 64
    assert bool((red[..., 0] > red[..., 1] + 99).any()) == random_weights


def test_what_is_made_is_replaced_by_force_alone(tmp_path: Path, told: list[Any]) -> None:
    bundle = pictures(tmp_path)
    path = sampled(bundle)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--force"):
        sampled(bundle, "a.npz", "--seeds", "7")
    assert path.read_bytes() == before
    sampled(bundle, "a.npz", "--seeds", "7", "--force")
    assert path.read_bytes() != before


@pytest.mark.parametrize("out", ["a.jpg", "a", "a.PNG", "png"])
def test_a_format_that_is_none(out: str, tmp_path: Path, told: list[Any]) -> None:
    with pytest.raises(UserError, match=rf"--out .*{out}: unknown format '.*'; allowed: \.png, \.npz"):
        sampled(pictures(tmp_path), out)
    assert not told


def test_what_is_no_picture_is_written_as_arrays(tmp_path: Path, told: list[Any]) -> None:
    bundle = pictures(tmp_path, inputs=inputs_of(2, 3), output={"name": "actions", "shape": [2, 3], "units": ""})
    with pytest.raises(UserError, match=r"it makes actions \[2, 3\], no pictures: write them with --out FILE\.npz"):
        sampled(bundle, "a.png")
    assert not (tmp_path / "a.png").exists()
    with np.load(sampled(bundle)) as stored:
        assert set(stored.files) == {"actions", "seeds"}


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_no_number_is_not_written(wrong: float, tmp_path: Path, told: list[Any]) -> None:
    Sampler.made = np.zeros((2, 1, 2, 3), np.float32)
    Sampler.made[1, 0, 1, 2] = wrong
    for out in ("a.npz", "a.png"):
        with pytest.raises(BoundError, match="the images hold NaN or infinity; run `compare`"):
            sampled(pictures(tmp_path) if out == "a.npz" else Bundle.open(tmp_path / "small"), out, "--seeds", "0,1")
        assert not (tmp_path / out).exists()
