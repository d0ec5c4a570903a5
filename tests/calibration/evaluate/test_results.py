"""What is kept is what was computed, to the bit, or it is computed again."""

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.calibration.arguments import size_in_bytes
from edge_sampler.calibration.evaluate import results
from edge_sampler.calibration.evaluate.network import Meter
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import temporary

ARRAYS = {"states": np.arange(6.0).reshape(2, 3), "mean": np.array([0.5], np.float32)}


def counted() -> tuple[Callable[[], dict[str, np.ndarray]], list[int]]:
    calls: list[int] = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return ARRAYS

    return compute, calls


def same(found: dict[str, np.ndarray]) -> bool:
    alike = [found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in ARRAYS.items()]
    return found.keys() == ARRAYS.keys() and all(alike)


def entry(folder: Path) -> Path:
    (only,) = folder.iterdir()  # and no leftover beside it
    return only


def test_a_key_is_computed_once(tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    assert same(cache.recall({"a": 1}, compute, Meter()))
    assert same(cache.recall({"a": 1}, compute, Meter()))
    assert len(calls) == 1
    assert same(cache.recall({"a": 2}, compute, Meter()))
    assert len(calls) == 2


def test_what_a_result_took_counts_whenever_it_was_computed(tmp_path: Path) -> None:
    cache, meter = Cache(tmp_path), Meter()

    def inner() -> dict[str, np.ndarray]:
        meter.count(2, 5)
        return ARRAYS

    def outer() -> dict[str, np.ndarray]:  # computes with a result that is kept
        meter.count(3, 1)
        return cache.recall({"of": "inner"}, inner, meter)

    for compute, spent in ((inner, 10), (inner, 20), (outer, 33), (outer, 46)):
        assert same(cache.recall({"of": compute.__name__}, compute, meter))
        assert meter.evaluations == spent


@pytest.mark.parametrize("together", [False, True])
def test_whatever_bit_is_flipped_it_is_computed_again(together: bool, tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    recall = cache.recall_together if together else cache.recall
    recall({"a": 1}, compute, Meter())
    whole = entry(tmp_path).read_bytes()
    places = [*range(0, len(whole), 7), len(whole) - 1]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        entry(tmp_path).write_bytes(content)
        assert same(recall({"a": 1}, compute, Meter()))
        assert entry(tmp_path).read_bytes() == whole
    assert len(calls) == 1 + len(places)


@pytest.mark.parametrize("kept", [0, 1, 31, 32, 33, 100])
def test_an_entry_that_was_cut_is_computed_again(kept: int, tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    cache.recall({"a": 1}, compute, Meter())
    entry(tmp_path).write_bytes(entry(tmp_path).read_bytes()[:kept])
    assert same(cache.recall({"a": 1}, compute, Meter()))
    assert len(calls) == 2


def test_no_entry_passes_for_anothers(tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    cache.recall({"a": 2}, lambda: {"other": np.zeros(3)}, Meter())
    other = entry(tmp_path)
    cache.recall({"a": 1}, compute, Meter())
    (own,) = set(tmp_path.iterdir()) - {other}
    own.write_bytes(other.read_bytes())
    assert same(cache.recall({"a": 1}, compute, Meter()))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip", np.lib.format.MAGIC_PREFIX, b"PK\x05\x06" + bytes(18)],
    ids=["nothing", "text", "an array's head", "an empty zip"],
)
def test_an_entry_of_another_kind_is_computed_again(content: bytes, tmp_path: Path) -> None:
    """Though its hash is right."""
    cache, (compute, calls) = Cache(tmp_path), counted()
    cache.recall({"a": 1}, compute, Meter())
    path = entry(tmp_path)
    path.write_bytes(results._digest(path, memoryview(content)) + content)
    assert same(cache.recall({"a": 1}, compute, Meter()))
    assert len(calls) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs devices")
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "link to nothing", "folder"])
@pytest.mark.parametrize("together", [False, True])
def test_what_is_no_file_is_no_entry(kind: str, together: bool, tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    recall = cache.recall_together if together else cache.recall
    recall({"a": 1}, compute, Meter())
    path = entry(tmp_path)
    path.unlink()
    makers: dict[str, Callable[[Path], None]] = {
        "pipe": os.mkfifo,
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "link to nothing": lambda path: path.symlink_to("absent"),
        "folder": Path.mkdir,
    }
    makers[kind](path)
    with pytest.raises(UserError, match=r"result is no file, and would be one of the cache: remove it"):
        recall({"a": 1}, compute, Meter())
    assert len(calls) == 1


def test_what_a_killed_writer_left_goes_and_what_one_holds_stays(tmp_path: Path) -> None:
    dead = tmp_path / f".{'0' * 64}.result.0123abcd.new"
    dead.mkdir()
    (dead / "half").write_bytes(bytes(1000))
    with temporary(tmp_path / f"{'1' * 64}.result") as held:
        Cache(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [held.name]


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    arrays = {"a": np.zeros(1000)}
    Cache(tmp_path).recall({"n": 0}, lambda: arrays, Meter())
    size = entry(tmp_path).stat().st_size
    cache, calls = Cache(tmp_path, 3 * size), list[int]()

    def recall(number: int) -> None:
        def compute() -> dict[str, np.ndarray]:
            calls.append(number)
            return arrays

        cache.recall({"n": number}, compute, Meter())

    (tmp_path / "notes.txt").write_bytes(bytes(10 * size))  # no entry
    for number in (1, 2, 0, 3):  # 0 is used again, so that 1 is the oldest
        recall(number)
    assert calls == [1, 2, 3]
    assert len(list(tmp_path.glob("*.result"))) == 3
    for number in (0, 2, 3, 1):
        recall(number)
    assert calls == [1, 2, 3, 1]
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(("text", "size"), [("5G", 5 * 10**9), ("500M", 5 * 10**8), ("2kB", 2000), ("7", 7)])
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "5X", "-1G", "1.5G", "G", "1" * 16])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="no size such as 5G"):
        size_in_bytes(text)
