"""What is kept is what was computed, to the bit, or it is computed again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.calibration.evaluate.results import Cache

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
    assert same(cache.recall({"a": 1}, compute))
    assert same(cache.recall({"a": 1}, compute))
    assert len(calls) == 1
    assert same(cache.recall({"a": 2}, compute))
    assert len(calls) == 2


@pytest.mark.parametrize("together", [False, True])
def test_whatever_bit_is_flipped_it_is_computed_again(together: bool, tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    recall = cache.recall_together if together else cache.recall
    recall({"a": 1}, compute)
    whole = entry(tmp_path).read_bytes()
    places = [*range(0, len(whole), 7), len(whole) - 1]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        entry(tmp_path).write_bytes(content)
        assert same(recall({"a": 1}, compute))
        assert entry(tmp_path).read_bytes() == whole
    assert len(calls) == 1 + len(places)


@pytest.mark.parametrize("kept", [0, 1, 31, 32, 33, 100])
def test_an_entry_that_was_cut_is_computed_again(kept: int, tmp_path: Path) -> None:
    cache, (compute, calls) = Cache(tmp_path), counted()
    cache.recall({"a": 1}, compute)
    entry(tmp_path).write_bytes(entry(tmp_path).read_bytes()[:kept])
    assert same(cache.recall({"a": 1}, compute))
    assert len(calls) == 2
