"""A load test: many clients at once ask for one image each, and each image is compared, bit for bit, with its seed's.

python -m edge_sampler.runtime.serve.load BUNDLE --requests 10000 --clients 32 --batch 16

Ten times in turn, a tenth of the requests is asked for and the sampler alone is timed at the same batch, as `bench`
does: so a machine's drift meets both. Prints images a second of both, latencies, and the server's memory. Exit 1 where
an image is lost or another's.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Session
from edge_sampler.runtime.bench import UNROLLED, alternate
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.sampler import feed_of
from edge_sampler.runtime.serve.protocol import HEAD_LENGTH, NAMES

DISTINCT = 1024  # seeds; requests take them in turn, so that no two at a time are of one
TURNS = 10
ROUNDS = 3  # of timing the sampler alone, in each turn


@dataclass
class Found:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each request that was answered
    wrong: int = 0
    rates: list[float] = field(default_factory=list)  # images a second in each turn
    alone: list[float] = field(default_factory=list)  # of the sampler alone, before each turn and after the last
    resident: list[float] = field(default_factory=list)  # MB of the server, when warm and after each turn


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    bundle, batch = Bundle.open(arguments.bundle), arguments.batch
    feed = feed_of(bundle, range(DISTINCT), bundle.examples(DISTINCT))
    bodies = [_body(bundle, feed, seed) for seed in range(DISTINCT)]
    with choose(bundle).open(bundle, None, ()) as session:
        parts = [{name: array[at : at + batch] for name, array in feed.items()} for at in range(0, DISTINCT, batch)]
        wanted = np.concatenate([session.run(part)[bundle.output.name] for part in parts])
        found = Found(alone=[_alone(session, parts[0], batch)])
        with _server(arguments) as (process, port):
            found.resident.append(_resident(process))
            for turn in range(TURNS):
                numbers = range(arguments.requests)[turn::TURNS]
                before, started = len(found.seconds), time.perf_counter()
                asyncio.run(_ask_all(arguments, port, iter(numbers), bodies, wanted, found))
                found.rates.append((len(found.seconds) - before) / (time.perf_counter() - started))
                found.resident.append(_resident(process))
                found.alone.append(_alone(session, parts[0], batch))
    ratios = [2 * rate / sum(found.alone[turn : turn + 2]) for turn, rate in enumerate(found.rates)]
    p50, p99 = (np.percentile(found.seconds, percent) * 1e3 for percent in (50, 99))
    answered = len(found.seconds)
    print(f"{answered} of {arguments.requests} answered, {found.wrong} with another image, {arguments.clients} clients")
    print(f"images/s, batch {batch}, medians of {TURNS} turns: {np.median(found.rates):.1f}", end="")
    print(f"; the sampler alone {np.median(found.alone):.1f}", end="")
    print(f"; ratio {np.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"latency p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"server's memory, MB, warm and after each turn: {', '.join(f'{mb:.1f}' for mb in found.resident)}")
    print(f"SIGTERM: exit {process.returncode}")
    return 1 if found.wrong or answered != arguments.requests or process.returncode else 0


def _alone(session: Session, feed: dict[str, np.ndarray], batch: int) -> float:
    """Images a second."""
    turns = alternate({UNROLLED: lambda: session.run(feed)}, ROUNDS)[UNROLLED]
    return batch * sum(map(len, turns)) / sum(map(sum, turns))


@contextmanager
def _server(arguments: argparse.Namespace) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """The command in a process of its own, ready; then told to end."""
    command = [sys.executable, "-m", "edge_sampler.runtime", "serve", str(arguments.bundle), "--port", "0"]
    command += ["--batch", str(arguments.batch), "--queue", str(max(256, arguments.clients))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            told = process.stdout.readline()
            if "ready" not in process.stdout.readline():
                raise UserError("the server did not start; its own words are above")
            yield process, int(told.rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)


def _body(bundle: Bundle, feed: dict[str, np.ndarray], seed: int) -> bytes:
    """A request for the image of that seed, in JSON, its answer in bytes."""
    tensors = {name: array[seed : seed + 1] for name, array in feed.items() if name != "noise"}
    tensors["seeds"] = np.array([seed])
    inputs = [
        {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape), "data": array.ravel().tolist()}
        for name, array in tensors.items()
    ]
    return json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()


async def _ask_all(
    arguments: argparse.Namespace,
    port: int,
    numbers: Iterator[int],
    bodies: Sequence[bytes],
    wanted: np.ndarray,
    found: Found,
) -> None:
    path = f"/v2/models/{arguments.bundle.resolve().name}/infer"

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            seed, started = number % DISTINCT, time.perf_counter()
            head = f"POST {path} HTTP/1.1\r\nHost: load\r\nContent-Length: {len(bodies[seed])}\r\n\r\n"
            writer.write(head.encode() + bodies[seed])
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers["content-length"]))
            if status.split()[1] != "200":
                print(status, body[:200], file=sys.stderr)
                continue
            found.seconds.append(time.perf_counter() - started)
            found.wrong += body[int(headers[HEAD_LENGTH.lower()]) :] != wanted[seed].tobytes()
        writer.close()

    await asyncio.gather(*(client() for _ in range(arguments.clients)))


def _resident(process: "subprocess.Popen[str]") -> float:
    """MB of that process in memory (Linux)."""
    return int(Path(f"/proc/{process.pid}/statm").read_text(encoding="utf-8").split()[1]) * 4096 / 1e6


if __name__ == "__main__":
    run_command(main)
