"""What a sampler asks of its session and what it takes from it, with a session that only remembers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import sampler as module
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import MOST_NUMBERS
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import DEFAULT_BATCH, Sampler, checked_seeds, feed_of, load, shape_made
from edge_sampler.runtime.verified import describe_files
from tests.bundles import facts

PLAN = Plan("ddim", (1.0,), ((1.0,), (0.5, 0.5)))
CONDITION = {"shape": ["T"], "dtype": "float32", "null": None, "choices": 0, "description": ""}
INPUTS = {"shape": [2, "T"], "conditions": {"c": CONDITION}, "axes": {"T": [1, 3, 5]}}
PLAIN = {"shape": [1, 2, 3], "conditions": {}, "axes": {}}
Made = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class Session:
    description, largest_batch = "remembers", 0

    def __init__(self, made: Made) -> None:
        self.made, self.feeds, self.closed = made, list[Mapping[str, np.ndarray]](), 0

    def run(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.feeds.append(feed)
        return self.made(feed["noise"])

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def open_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, made: Made, inputs: Mapping[str, Any] = PLAIN, **change: Any
) -> tuple[Sampler, Session]:
    """A sampler of a bundle that makes what it is given, and its session."""
    session, place = Session(made), folder / "b"
    place.mkdir()
    PLAN.save(place / "plan.json")
    (place / "sampler.onnx").touch()
    told = facts(inputs, {"name": "images", "shape": inputs["shape"], "units": ""}) | {"plan_sha256": PLAN.sha256}
    told["model"] |= change.pop("model", {})
    write_manifest(place / MANIFEST, told | change, describe_files(place))

    class Backend:
        inner_values, gpu = True, False

        def open(self, bundle: Bundle, precision: str | None, made: tuple[str, ...]) -> Session:
            assert precision == "fp16"
            assert made == (("images_float32",) if bundle.dtype == "uint8" else ())
            return session

    monkeypatch.setattr(module, "choose", lambda bundle, backend, precision: Backend())
    return load(place, "any", "fp16"), session


def same(noise: np.ndarray) -> dict[str, np.ndarray]:
    return {"images": noise}


def test_batches_are_the_seeds_noises_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, session = open_with(monkeypatch, tmp_path, same)
    seeds = [5, 0, 7, 7, 2**62, 1, 3]
    made = sampler.sample(seeds, 3, temperature=0.5)
    np.testing.assert_array_equal(made, 0.5 * unit_noise(seeds, (1, 2, 3)))
    assert made.dtype == np.float32
    assert [len(feed["noise"]) for feed in session.feeds] == [3, 3, 1]
    assert sampler.description == "remembers"


@pytest.mark.parametrize(("largest", "sizes"), [(0, [DEFAULT_BATCH, 1]), (40, [40, 25])])
def test_a_batch_is_as_large_as_the_session_takes(
    largest: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, session = open_with(monkeypatch, tmp_path, same)
    session.largest_batch = largest
    sampler.sample(range(DEFAULT_BATCH + 1))
    assert [len(feed["noise"]) for feed in session.feeds] == sizes
    if largest:
        assert len(sampler.sample([0], largest)) == 1
        with pytest.raises(UserError, match="batch is 41; it must be at least 1 and at most 40"):
            sampler.sample([0], largest + 1)
    for batch in (0, -1):
        with pytest.raises(UserError, match=f"batch is {batch}; it must be at least 1"):
            sampler.sample([0], batch)
    assert len(sampler.sample([0], 1)) == 1


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1e39, 1e-50, float("inf"), float("nan")])
def test_a_temperature_scales_the_noise(temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, _ = open_with(monkeypatch, tmp_path, same)
    with pytest.raises(UserError, match="it must be above 0 and finite"):
        sampler.sample([0], temperature=temperature)
    np.testing.assert_array_equal(sampler.sample([0], temperature=2), 2 * sampler.sample([0]))


def test_the_noise_is_scaled_as_the_sampler_was_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, _ = open_with(monkeypatch, tmp_path, same, temperature=0.25)
    np.testing.assert_array_equal(sampler.sample([3]), 0.25 * unit_noise([3], (1, 2, 3)))
    np.testing.assert_array_equal(sampler.sample([3], temperature=1), unit_noise([3], (1, 2, 3)))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_bundle_of_no_temperature_is_damaged(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=f"manifest.json is damaged: its temperature is {temperature}"):
        open_with(monkeypatch, tmp_path, same, temperature=temperature)


def test_a_closed_sampler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, session = open_with(monkeypatch, tmp_path, same)
    with sampler as entered:
        assert entered is sampler
        sampler.sample([1])
        assert session.closed == 0
    with pytest.raises(UserError, match="the sampler is closed"):
        sampler.sample([1])
    with sampler:
        pass
    assert session.closed == 1


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda noise: {"other": noise}, "makes other, and no images: export the bundle again"),
        (lambda noise: {"images": noise.astype(float)}, r"images float64 \[2, 1, 2, 3\], not float32 \[2, 1, 2, 3\]"),
        (lambda noise: {"images": noise.astype(np.float16)}, "images float16"),
        (lambda noise: {"images": noise[:1]}, r"images float32 \[1, 1, 2, 3\], not float32 \[2, 1, 2, 3\]"),
        (lambda noise: {"images": noise[..., :2]}, r"images float32 \[2, 1, 2, 2\]"),
    ],
)
def test_what_is_not_as_the_manifest_says_is_no_sample(
    made: Made, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, _ = open_with(monkeypatch, tmp_path, made)
    with pytest.raises(UserError, match=told):
        sampler.sample([1, 2])


def test_eight_bits_have_the_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, _ = open_with(
        monkeypatch, tmp_path, lambda noise: {"images": np.zeros((len(noise), 2, 3, 1), np.uint8)}, dtype="uint8"
    )
    assert sampler.sample([1, 2]).shape == (2, 2, 3, 1)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_picture_of_eight_bits_is_of_what_is_no_number(
    wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(noise: np.ndarray) -> dict[str, np.ndarray]:
        floats = np.zeros_like(noise)
        floats[-1, 0, 1, 2] = wrong if len(noise) < 3 else 0
        return {"images": np.zeros((len(noise), 2, 3, 1), np.uint8), "images_float32": floats}

    sampler, _ = open_with(monkeypatch, tmp_path, made, dtype="uint8")
    assert len(sampler.sample([1, 2, 3])) == 3
    with pytest.raises(BoundError, match="seed 9 makes NaN or infinity, which pictures of uint8 cannot hold"):
        sampler.sample([1, 2, 3, 8, 9], 3)


def test_conditions_and_sizes_reach_each_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, session = open_with(monkeypatch, tmp_path, same, INPUTS)
    rows = np.arange(12.0).reshape(3, 4)
    assert sampler.sample([1, 2, 3], 2, c=rows).shape == (3, 2, 4)
    np.testing.assert_array_equal(np.concatenate([feed["c"] for feed in session.feeds]), rows)
    feed = feed_of(sampler.bundle, [4, 5], {"c": np.zeros(5)}, stream=1)
    assert (feed["noise"].shape, feed["c"].shape) == ((2, 2, 5), (2, 5))
    np.testing.assert_array_equal(feed["noise"], unit_noise([4, 5], (2, 5), 1))
    np.testing.assert_array_equal(feed_of(sampler.bundle, [4], {"c": np.zeros(5)})["noise"], unit_noise([4], (2, 5)))
    assert shape_made(sampler.bundle, feed) == (2, 2, 5)


@pytest.mark.parametrize("random_weights", [False, True])
def test_random_weights_are_told(
    random_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    open_with(monkeypatch, tmp_path, same, model={"random_weights": random_weights})
    assert ("random weights" in capsys.readouterr().err) == random_weights


def test_seeds_are_whole_numbers() -> None:
    assert checked_seeds(range(3)) == checked_seeds(np.arange(3, dtype=np.uint8)) == [0, 1, 2]  # type: ignore[arg-type]
    for wrong in ([], [[1]], [[1], [1, 2]], [0.5], [True], [True, 2], ["1"], 3, [2**64]):
        with pytest.raises(UserError, match=f"they must be whole numbers below {2**63}, at least one"):
            checked_seeds(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [MOST_NUMBERS + 1, 10**15])
def test_no_more_seeds_than_a_command_line_takes(count: int) -> None:
    """10^15 would fill any memory, were they looked at one by one."""
    with pytest.raises(UserError, match=f"^{count:,} seeds are too many: one call takes 1,000,000 at most"):
        checked_seeds(range(count))
    with pytest.raises(UserError, match="must be whole numbers"):
        checked_seeds(range(10**30))  # has no len()
    assert len(checked_seeds(range(MOST_NUMBERS))) == MOST_NUMBERS


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"batch": 1.5}, "batch is 1.5; it must be a whole number"),
        ({"batch": "2"}, "batch is '2'; it must be a whole number"),
        ({"temperature": "1"}, "temperature is '1'; it must be above 0 and finite"),
    ],
)
def test_sizes_and_factors_are_numbers(
    wrong: dict[str, Any], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler, _ = open_with(monkeypatch, tmp_path, same)
    with pytest.raises(UserError, match=told):
        sampler.sample([0], **wrong)
    assert len(sampler.sample([0], np.int64(1), np.float32(1))) == 1
