"""The server's parts alone: tensors in JSON and in bytes, and the queue."""

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.serve.batches import Batches, QueueFullError, Row
from edge_sampler.runtime.serve.metrics import Metrics, page
from edge_sampler.runtime.serve.protocol import DTYPES, NAMES, read_request, write_response

NUMBERS = st.sampled_from([np.dtype(dtype) for dtype in DTYPES.values()])
SHAPES = of_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=3)
ARRAYS = NUMBERS.flatmap(  # JSON has no NaN, and ONNX Runtime may have ended subnormal numbers in this process
    lambda dtype: of_numpy.arrays(
        dtype, SHAPES, elements=of_numpy.from_dtype(dtype, allow_subnormal=False, allow_nan=False)
    )
)


@settings(max_examples=150)
@given(
    st.dictionaries(st.text(max_size=4), ARRAYS, min_size=1, max_size=3), st.sampled_from(["flat", "nested", "bytes"])
)
def test_tensors_come_as_they_were_sent(arrays: dict[str, np.ndarray], form: str) -> None:
    told, data = [], b""
    for name, array in arrays.items():
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype.name]}
        if form == "bytes":
            data += array.tobytes()
            one["parameters"] = {"binary_data_size": array.nbytes}
        else:
            one["data"] = (array if form == "nested" and array.size else array.ravel()).tolist()
        told.append(one)
    head = json.dumps({"inputs": told}).encode()
    read = read_request(head + data, str(len(head)) if form == "bytes" else None)
    assert list(read.inputs) == list(arrays)
    for name, array in arrays.items():
        found = read.inputs[name]
        assert (found.datatype, found.array.dtype) == (NAMES[array.dtype.name], array.dtype)
        np.testing.assert_array_equal(found.array, array)


@settings(max_examples=100)
@given(st.data())
def test_a_body_that_was_changed_is_read_or_refused(data: st.DataObject) -> None:
    """And never ends in another error."""
    one = {"name": "seeds", "shape": [2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    text = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    head = json.dumps({"inputs": [one, text], "outputs": [{"name": "images"}], "parameters": {}}).encode()
    body = bytearray(head + bytes(16))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 3))] = data.draw(
            st.binary(max_size=3) | st.sampled_from([b"[", b"9e9", b'"'])
        )
    with suppress(UserError):
        read_request(bytes(body), data.draw(st.sampled_from([None, str(len(head)), "0", "9" * 30])))


def test_an_output_is_in_json_exactly() -> None:
    array = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    asked = read_request(b'{"inputs": [{"name": "s", "shape": [1], "datatype": "INT64", "data": [1]}]}', None)
    body, _ = write_response(asked, "m", {"images": array})
    (told,) = json.loads(body)["outputs"]
    np.testing.assert_array_equal(np.array(told["data"], np.float32).reshape(told["shape"]), array)


def row(seed: int, size: int = 1) -> Row:
    return Row(seed, (size,), {})


class Runs:
    """Makes of a row its seed; each run waits until it is let go."""

    def __init__(self) -> None:
        self.runs, self.go = list[list[Any]](), threading.Semaphore(0)

    def __call__(self, rows: Sequence[Row]) -> list[np.ndarray | Exception]:
        self.runs.append([one.start for one in rows])
        assert self.go.acquire(timeout=60)
        if 13 in self.runs[-1]:
            raise RuntimeError("13")
        return [ValueError("7") if one.start == 7 else np.full(one.shape, one.start) for one in rows]


async def until(true: Any) -> None:
    while not true():
        await asyncio.sleep(0.001)


def queued(scenario: Any, **given: Any) -> Runs:
    """Runs ``scenario(batches, runs)`` beside a queue of batches of 3 with room for 6."""
    runs = Runs()

    async def both() -> None:
        with ThreadPoolExecutor(1) as thread:
            batches = Batches(runs, thread, 3, 6, 0.0, Metrics())
            work = asyncio.create_task(batches.work())
            try:
                await asyncio.wait_for(scenario(batches, runs), 60)
            finally:
                runs.go.release(100)
                work.cancel()

    asyncio.run(both())
    return runs


def test_rows_are_taken_in_order_and_by_shape() -> None:
    async def scenario(batches: Batches, runs: Runs) -> None:
        first = asyncio.create_task(batches.make([row(1)]))
        await until(lambda: len(runs.runs) == 1)
        others = [batches.make([row(2), row(3)]), batches.make([row(4, size=2)]), batches.make([row(5), row(6)])]
        gathered = asyncio.gather(*others)
        runs.go.release(100)
        assert [made.tolist() for made in await first] == [[1]]
        assert [[made.tolist() for made in part] for part in await gathered] == [[[2], [3]], [[4, 4]], [[5], [6]]]

    assert queued(scenario).runs == [[1], [2, 3, 5], [4], [6]]


def test_room_is_counted_in_rows_and_given_back() -> None:
    async def scenario(batches: Batches, runs: Runs) -> None:
        first = asyncio.create_task(batches.make([row(1)]))
        await until(lambda: len(runs.runs) == 1)
        waiting = asyncio.create_task(batches.make([row(seed) for seed in range(20, 26)]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batches.make([row(9)])
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        last = asyncio.create_task(batches.make([row(9)] * 6))
        runs.go.release(100)
        assert len(await last) == 6
        first.cancel()

    assert queued(scenario).runs == [[1], [9, 9, 9], [9, 9, 9]]


def test_a_request_that_is_cancelled_in_its_run_leaves_the_others_theirs() -> None:
    async def scenario(batches: Batches, runs: Runs) -> None:
        tasks = [asyncio.create_task(batches.make([row(seed)])) for seed in (1, 2, 3)]
        await until(lambda: runs.runs and sum(map(len, runs.runs)) == 3)
        tasks[1].cancel()
        runs.go.release(100)
        assert [(await task)[0].item() for task in (tasks[0], tasks[2])] == [1, 3]

    queued(scenario)


def test_what_fails_fails_alone() -> None:
    async def scenario(batches: Batches, runs: Runs) -> None:
        first = asyncio.create_task(batches.make([row(1)]))
        await until(lambda: len(runs.runs) == 1)
        tasks = [asyncio.create_task(batches.make([row(seed)])) for seed in (2, 13, 7)]
        runs.go.release(100)
        assert [(await task)[0].item() for task in (first, tasks[0])] == [1, 2]
        for task, error in zip(tasks[1:], (RuntimeError, ValueError), strict=True):
            with pytest.raises(error):
                await task
        assert (await batches.make([row(4)]))[0].item() == 4  # and it goes on

    queued(scenario)


def test_an_idle_queue_asks_for_nothing() -> None:
    async def scenario(batches: Batches, runs: Runs) -> None:
        runs.go.release(100)
        await batches.make([row(1)])
        taken = list[int]()
        batches._take = lambda: taken.append(1) or []  # type: ignore[func-returns-value, method-assign]
        for _ in range(50):
            await asyncio.sleep(0.0005)
        assert not taken

    queued(scenario)


def test_names_are_escaped() -> None:
    assert r'{model="a\"b\\c\nd",outcome="ok"} 0' in page({'a"b\\c\nd': Metrics()})
