"""The load test of a server: what it asks, and what it makes of answers that are late, wrong, or none."""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.bench import UNROLLED
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.serve import load
from edge_sampler.runtime.serve.load import DISTINCT, Found, main
from tests.conftest import run_main
from tests.runtime import small_bundles
from tests.runtime.small_bundles import HINT, inputs_of

Server = Callable[[Any], Awaitable[None]]
WANTED = np.arange(6 * DISTINCT, dtype=np.float32).reshape(DISTINCT, 2, 3)
HEAD = b'{"outputs": []}'


def answer(image: np.ndarray, status: str = "200 OK") -> bytes:
    told = f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: {len(HEAD)}\r\n"
    body = HEAD + image.tobytes()
    return f"{told}content-length: {len(body)}\r\n\r\n".encode() + body


def asked(
    numbers: Sequence[int], answers: Callable[[int], bytes], clients: int = 2
) -> tuple[Found, list[int], int, set[str]]:
    """What clients find on a server of these answers by seed; the seeds, its connections, and the requests' heads."""
    found, seeds, heads, connections = Found(), list[int](), set[str](), list[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(1)
        while head := (await reader.read(65536)).decode():
            seeds.append(int(head.partition("\r\n\r\n")[2]))
            heads.add(head.partition("\r\n\r\n")[0])
            writer.write(answers(seeds[-1]))
        writer.close()

    async def both() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        arguments = argparse.Namespace(bundle=Path("some/../digits"), clients=clients)
        bodies = [f"{seed:04d}".encode() for seed in range(DISTINCT)]
        port = server.sockets[0].getsockname()[1]
        await asyncio.wait_for(load._ask_all(arguments, port, iter(numbers), bodies, WANTED, found), 60)
        server.close()

    asyncio.run(both())
    return found, seeds, len(connections), heads


def test_each_answer_is_compared_with_its_seeds() -> None:
    found, seeds, connections, heads = asked(range(7), lambda seed: answer(WANTED[seed]), clients=3)
    assert sorted(seeds) == list(range(7))
    assert (len(found.seconds), found.wrong, connections) == (7, 0, 3)
    assert all(0 < seconds < 60 for seconds in found.seconds)
    assert heads == {"POST /v2/models/digits/infer HTTP/1.1\r\nHost: load\r\nContent-Length: 4"}
    found, seeds, *_ = asked([DISTINCT - 1, DISTINCT, 2 * DISTINCT + 1], lambda seed: answer(WANTED[seed]))
    assert (sorted(seeds), found.wrong) == ([0, 1, DISTINCT - 1], 0)  # they begin again


def test_anothers_image_is_wrong_and_what_is_refused_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    found, *_ = asked(range(5), lambda seed: answer(WANTED[3]))
    assert (len(found.seconds), found.wrong) == (5, 4)
    full = "429 Too Many Requests"
    found, *_ = asked(range(6), lambda seed: answer(WANTED[seed], full if seed % 3 == 1 else "200 OK"), clients=1)
    assert (len(found.seconds), found.wrong) == (4, 0)
    assert capsys.readouterr().err.count(full) == 2


def test_a_request_is_for_one_seed_with_its_conditions(tmp_path: Path) -> None:
    feed = {
        "noise": np.zeros((3, 2, 3), np.float32),
        "hint": np.eye(3, 2, dtype=np.float32),
        "label": np.array([5, 6, 7]),
    }
    told = json.loads(load._body(small_bundles.bundle(tmp_path), feed, 1))
    assert told == {
        "inputs": [
            {"name": "hint", "datatype": "FP32", "shape": [1, 2], "data": [0.0, 1.0]},
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [6]},
            {"name": "seeds", "datatype": "INT64", "shape": [1], "data": [1]},
        ],
        "parameters": {"binary_data_output": True},
    }


class Process:
    """``serve``, which says these lines."""

    def __init__(self, *lines: str) -> None:
        self.lines, self.signals, self.command = list(lines), list[int](), list[str]()
        self.stdout, self.pid, self.returncode = SimpleNamespace(readline=lambda: self.lines.pop(0)), 1, 0

    def __call__(self, command: list[str], **settings: Any) -> "Process":
        assert settings == {"stdout": subprocess.PIPE, "text": True}
        self.command = command
        return self

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_server_is_started_and_told_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = "listening on http://127.0.0.1:4321\n"
    for clients, queue in ((32, "256"), (300, "300")):
        process: Any = Process(listening, "digits: ready, by ONNX Runtime\n")
        monkeypatch.setattr(subprocess, "Popen", process)
        arguments = argparse.Namespace(bundle=Path("digits"), batch=16, clients=clients)
        with load._server(arguments) as (found, port):
            assert (found, port, process.signals) == (process, 4321, [])
        assert process.signals == [signal.SIGTERM]
        assert process.command[:2] == [sys.executable, "-m"]
        assert process.command[2:] == [
            "edge_sampler.runtime", "serve", "digits", "--port", "0", "--batch", "16", "--queue", queue
        ]  # fmt: skip
    process = Process(listening, "")
    monkeypatch.setattr(subprocess, "Popen", process)
    with pytest.raises(UserError, match="the server did not start"), load._server(arguments):
        pass
    assert process.signals == [signal.SIGTERM]


def test_memory_is_what_is_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[Path]()
    monkeypatch.setattr(Path, "read_text", lambda self, **_: read.append(self) or "9000 2500 30 4 0 5 0\n")  # type: ignore[func-returns-value]
    assert load._resident(Process()) == 10.24  # type: ignore[arg-type]
    assert read == [Path("/proc/1/statm")]


def test_the_sampler_alone_is_timed_as_bench_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = list[Any]()

    def alternate(paths: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[list[float]]]:
        paths[UNROLLED]()
        return {UNROLLED: [[0.5, 0.25], [0.25], [1.0, 2.0]]} if rounds == 3 else {}

    monkeypatch.setattr(load, "alternate", alternate)
    session: Any = SimpleNamespace(run=ran.append)
    assert load._alone(session, {"noise": np.zeros(1)}, 16) == 16 * 5 / 4
    assert ran == [{"noise": np.zeros(1)}]


class Session:
    """Makes of noise its double."""

    def __init__(self) -> None:
        self.sizes = list[int]()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sizes.append(len(feed["noise"]))
        return {"samples": 2 * feed["noise"]}


@pytest.mark.parametrize(
    ("lost", "wrong", "ended", "status"), [(0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 143, 1)]
)
def test_what_it_finds(
    lost: int,
    wrong: int,
    ended: int,
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small_bundles.bundle(tmp_path, inputs_of(2, 3, hint=HINT))
    monkeypatch.setattr(Bundle, "examples", lambda self, count: {"hint": np.ones((count, 2), np.float32)})
    session, process, turns, clock = Session(), Process(), list[list[int]](), [0.0]
    process.returncode = ended
    monkeypatch.setattr(load, "choose", lambda bundle: SimpleNamespace(open=lambda *told: session))
    rates = iter(range(100, 2000, 100))
    monkeypatch.setattr(load, "_alone", lambda session, feed, batch: next(rates) if len(feed["noise"]) == batch else 0)
    sizes = iter([200.0 + turn for turn in range(11)])
    monkeypatch.setattr(load, "_resident", lambda process: next(sizes))

    @contextmanager
    def server(arguments: argparse.Namespace) -> Iterator[tuple[Process, int]]:
        yield process, 4321

    async def ask_all(
        arguments: Any, port: int, numbers: Iterator[int], bodies: Any, wanted: Any, found: Found
    ) -> None:
        assert (port, len(bodies), wanted.shape) == (4321, DISTINCT, (DISTINCT, 2, 3))
        assert json.loads(bodies[7])["inputs"][-1]["data"] == [7]
        turns.append(list(numbers))
        clock[0] += 0.5
        first = not found.seconds
        found.seconds += [number / 1000 for number in turns[-1][lost * first :]]
        found.wrong += wrong * first

    monkeypatch.setattr(load, "_server", server)
    monkeypatch.setattr(load, "_ask_all", ask_all)
    monkeypatch.setattr("edge_sampler.runtime.serve.load.time.perf_counter", lambda: clock[0])
    given = ("--requests", "203", "--clients", "5", "--batch", "100")
    assert run_main(main, str(tmp_path), *given) == status
    assert session.sizes == [100] * 10 + [24]
    assert sorted(number for turn in turns for number in turn) == list(range(203))
    assert [len(turn) for turn in turns] == [21] * 3 + [20] * 7
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{203 - lost} of 203 answered, {wrong} with another image, 5 clients"
    # 42 or 40 images a second; alone 100, 200, …, so means of 150, 250, …, 1050
    assert lines[1] == (
        "images/s, batch 100, medians of 10 turns: 40.0; the sampler alone 600.0; "
        f"ratio 0.067 (0.038 to {(42 - 2 * lost) / 150:.3f})"
    )
    assert lines[2] == f"latency p50 {102 if lost else 101} ms, p99 200 ms"
    assert lines[3] == (
        "server's memory, MB, warm and after each turn: "
        "200.0, 201.0, 202.0, 203.0, 204.0, 205.0, 206.0, 207.0, 208.0, 209.0, 210.0"
    )
    assert lines[4] == f"SIGTERM: exit {ended}"
