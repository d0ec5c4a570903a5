"""Connections over which nothing comes, or more of them than are taken at once."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn
from uvicorn.server import ServerState

from edge_sampler.runtime.serve.connection import Connection
from tests.runtime.serving import Served, eventually

ROOT = Path(__file__).parent.parent.parent
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
LARGE = 2**25
Work = Callable[[Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]], Awaitable[None]]


async def slow(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer comes after a while."""
    await asyncio.sleep(0.3)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def large(scope: Any, receive: Any, send: Any) -> None:
    """An application whose answer is larger than what systems hold for a reader."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def served(work: Work, kind: type[Connection], app: Any = slow) -> None:
    """``work`` with what opens a connection of that kind."""

    async def run() -> None:
        config, state = uvicorn.Config(app, ws="none", lifespan="off", log_level="error"), ServerState()
        server = await asyncio.get_running_loop().create_server(lambda: kind(config, state, {}), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            await work(lambda: asyncio.open_connection("127.0.0.1", port))

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.parametrize("before", [b"", b"G", HEAD, HEAD + b"\r\n", HEAD + b"\r\n" + HEAD])
def test_a_silent_connection_is_closed(before: bytes) -> None:
    """At its beginning, within a head and behind an answer; an answer itself may take longer."""

    class Hasty(Connection):
        patience = 0.1

    async def work(connect: Any) -> None:
        reader, writer = await connect()
        writer.write(before)
        answer = await reader.read()  # until the other side closes it
        assert answer.count(b"200 OK") == before.count(b"\r\n\r\n")

    served(work, Hasty)


def test_bytes_that_are_no_head_buy_no_time() -> None:
    class Hasty(Connection):
        patience = 0.2

    async def work(connect: Any) -> None:
        reader, writer = await connect()
        writer.write(HEAD + b"a: ")
        ending = asyncio.create_task(reader.read())
        while not ending.done():
            writer.write(b"a")
            await asyncio.sleep(0.01)

    served(work, Hasty)


def test_requests_behind_one_another_are_all_answered() -> None:
    class Hasty(Connection):
        patience = 0.1

    async def work(connect: Any) -> None:
        reader, writer = await connect()
        writer.write((HEAD + b"\r\n") * 3)
        assert (await reader.read()).count(b"200 OK") == 3

    served(work, Hasty)


def test_an_answer_that_nobody_reads_is_cut() -> None:
    """One that is read slowly is not."""

    class Hasty(Connection):
        patience, stalled = 3600.0, 0.2
        lost = 0

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            Hasty.lost += 1

    async def work(connect: Any) -> None:
        _, silent = await connect()
        silent.write(HEAD + b"\r\n")
        reader, writer = await connect()
        writer.write(HEAD + b"\r\n")
        read = 0
        while read < LARGE:
            read += len(part := await reader.read(2**16))
            assert part
            await asyncio.sleep(0.002)
        while Hasty.lost < 1:  # without a byte from the other one
            await asyncio.sleep(0.01)

    served(work, Hasty, large)


def test_connections_at_once_are_bounded() -> None:
    class Few(Connection):
        most = 2

    async def work(connect: Any) -> None:
        first, second, third = [await connect() for _ in range(3)]
        assert (await third[0].read()).startswith(b"HTTP/1.1 503 ")
        first[1].close()
        second[1].write(HEAD + b"\r\n")
        assert (await second[0].readline()).endswith(b" 200 OK\r\n")
        fourth = await connect()  # the place that was left
        fourth[1].write(HEAD + b"\r\n")
        assert (await fourth[0].readline()).endswith(b" 200 OK\r\n")

    served(work, Few)


def test_where_no_more_files_can_be_open_it_says_so_once_and_goes_on(made: Path) -> None:
    resource = pytest.importorskip("resource")
    command = [sys.executable, "-m", "edge_sampler.runtime", "serve", str(made), "--port", "0"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
    ) as process:
        assert process.stdout
        assert process.stderr
        port = int(process.stdout.readline().rpartition(":")[2])
        assert "ready" in process.stdout.readline()
        served = Served(port, [], None, None)  # type: ignore[arg-type]
        idle = [served.connect() for _ in range(150)]
        for one in idle:
            one.connect()
        told = process.stderr.readline()
        for one in idle:
            one.close()
        eventually(served.ready)
        process.terminate()
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
        assert told.startswith("note: no connection can be accepted ([Errno 24] Too many open files); raise the limit")
