"""How a server starts and ends, and what its command takes, with models that load at once or never."""

import argparse
import asyncio
import io
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import uvicorn

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.serve import command, server
from edge_sampler.runtime.serve.app import make_app
from edge_sampler.runtime.serve.command import KEY, main
from edge_sampler.runtime.serve.connection import Connection
from edge_sampler.runtime.serve.server import Server, serve
from tests.conftest import run_main
from tests.runtime import small_bundles

OPTIONS = argparse.Namespace(backend="onnxrt", precision="fp16", batch=4, queue=9, wait=5.0, max_body=2)


def ending(active: int = 0, draining: bool = False) -> tuple[Server, Any]:
    cancelled = list[int]()
    body = SimpleNamespace(cancel=lambda: cancelled.append(1))
    service = SimpleNamespace(active=active, draining=draining, bodies=[body], cancelled=cancelled)
    return Server(uvicorn.Config(lambda: None), service), service  # type: ignore[arg-type]


def test_the_first_signal_lets_it_answer_and_the_second_does_not() -> None:
    one, service = ending(active=2)
    one.handle_exit(signal.SIGTERM, None)
    assert (service.draining, one.should_exit, one.force_exit) == (True, False, False)
    one.handle_exit(signal.SIGTERM, None)
    assert (one.should_exit, one.force_exit) == (True, True)
    service.active = 0
    one.handle_exit(signal.SIGTERM, None)
    assert one.force_exit is True  # some were not answered
    idle, _ = ending()
    for _ in range(2):
        idle.handle_exit(signal.SIGINT, None)
    assert (idle.should_exit, idle.force_exit) == (True, False)  # nobody waits for it
    busy, _ = ending(active=1)
    for _ in range(2):
        busy.handle_exit(signal.SIGINT, None)
    assert busy.force_exit is True


@pytest.mark.parametrize(
    ("active", "draining", "ends"), [(0, True, True), (1, True, False), (0, False, False), (1, False, False)]
)
def test_it_ends_when_all_is_answered(active: int, draining: bool, ends: bool) -> None:
    """And bodies that have not come whole are given up then: nobody has accepted their requests."""
    one, service = ending(active, draining)

    async def waited() -> None:
        await asyncio.wait_for(one.end_when_drained(step=0.001), 60 if ends else 0.02)

    if ends:
        asyncio.run(waited())
    else:
        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(waited())
    assert (one.should_exit, len(service.cancelled)) == (ends, ends)


class Model:
    """Loads, or fails, or never comes to an end; remembers what it was told and whether it was closed."""

    made: list["Model"]
    fails: BaseException | None = None
    slow = False

    def __init__(self, bundle: Any, name: str, room: int, patience: float) -> None:
        self.told, self.name, self.ready, self.options = (bundle, name, room, patience), name, False, ()
        self.description, self.answers, self.ended = f"by {name}", asyncio.Event(), list[str]()
        Model.made.append(self)

    async def start(self, *options: Any) -> "asyncio.Task[None]":
        self.options = options
        if self.fails:
            raise self.fails
        if self.slow:
            await asyncio.Event().wait()
        self.ready = True
        return asyncio.create_task(self.work())

    async def work(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append("work")

    async def close(self) -> None:
        await asyncio.sleep(0)  # until what was cancelled has ended
        self.ended.append("session")


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    Model.made, Model.fails, Model.slow = [], None, False
    monkeypatch.setattr(server, "Model", Model)
    return Model.made


def signalled(monkeypatch: pytest.MonkeyPatch, *, times: int = 1, active: int = 0) -> list[uvicorn.Config]:
    """As soon as its models are loaded, or cannot be, signals end the server; ``active`` requests wait all the while.

    Returns what it was configured with. The real ``serve`` of uvicorn would take the process's signals.
    """
    configs = list[uvicorn.Config]()

    async def run(self: Server, sockets: Any) -> None:
        configs.append(self.config)
        self.servers = []
        self._service.active = active
        for _ in range(20):  # models start meanwhile
            await asyncio.sleep(0)
        waiting = asyncio.create_task(asyncio.Event().wait())
        self.server_state.tasks.add(waiting)  # type: ignore[arg-type]
        for _ in range(times):
            self.handle_exit(signal.SIGTERM, None)
        while not self.should_exit:
            await asyncio.sleep(0)
        configs.append(waiting)  # type: ignore[arg-type]

    monkeypatch.setattr(Server, "serve", run)
    return configs


def run(host: str = "127.0.0.1", **bundles: Any) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        serve(bundles, listener, None, OPTIONS)


def test_models_are_loaded_told_of_and_closed(
    models: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configs: list[Any] = signalled(monkeypatch)
    run(a="first", b="second")
    assert [model.told for model in models] == [("first", "a", 9, 0.005), ("second", "b", 9, 0.005)]
    assert [model.options for model in models] == [("onnxrt", "fp16", 4)] * 2
    assert [model.ended for model in models] == [["work", "session"]] * 2
    listening, *ready = capsys.readouterr().out.splitlines()
    assert listening.startswith("listening on http://127.0.0.1:")
    assert ready == ["a: ready, by by a", "b: ready, by by b"]
    config, waiting = configs
    assert (config.access_log, config.server_header, config.proxy_headers) == (False, False, False)
    assert (config.http, config.timeout_graceful_shutdown) == (Connection, 30)
    assert waiting.cancelled()


@pytest.mark.parametrize(("slow", "lines"), [(True, [b"listening"]), (False, [b"listening", b"a:"])])
def test_what_starts_a_server_reads_each_line_at_once(
    slow: bool, lines: list[bytes], models: list[Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a pipe, which nothing else flushes before the server ends."""
    stream = io.TextIOWrapper(pipe := io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(Model, "slow", slow)
    signalled(monkeypatch)
    run(a="first")
    assert [line.split()[0] for line in pipe.getvalue().splitlines()] == lines


def test_a_body_may_have_as_many_megabytes_as_it_is_told(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch)
    made, make = list[Any](), make_app
    monkeypatch.setattr(server, "make_app", lambda *told: made.append(told) or make(*told))  # type: ignore[func-returns-value]
    run(a="first")
    ((service, key),) = made
    assert (service.largest_body, key) == (2_000_000, None)


def test_an_address_of_version_6_is_told_as_urls_have_it(
    models: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signalled(monkeypatch)
    try:
        run("::1", a="first")
    except OSError:
        pytest.skip("no IPv6")
    assert capsys.readouterr().out.startswith("listening on http://[::1]:")


def test_a_model_that_cannot_be_loaded_ends_the_server(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, times=0)
    monkeypatch.setattr(Model, "fails", UserError("damaged"))
    with pytest.raises(UserError, match="damaged"):
        run(a="first", b="second")
    assert [model.ended for model in models] == [["session"]] * 2


def test_what_still_loads_is_given_up(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch)
    monkeypatch.setattr(Model, "slow", True)
    run(a="first")
    assert [model.ended for model in models] == [["session"]]


def test_an_end_with_requests_left_has_another_status(models: list[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    signalled(monkeypatch, times=2, active=1)
    with pytest.raises(SystemExit) as ended:
        run(a="first")
    assert ended.value.code == 143


# ---- The command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small").mkdir()
    small_bundles.bundle(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``serve`` is given."""
    found = list[Any]()

    def serve(bundles: Any, listener: socket.socket, key: str | None, options: argparse.Namespace) -> None:
        found.append((list(bundles), listener.getsockname()[0], key, options))
        assert listener.fileno() >= 0

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.delenv(KEY, raising=False)
    return found


def test_what_a_server_is_unless_told(folder: Path, told: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, str(folder), "--port", "0") == 0
    ((names, host, key, options),) = told
    assert (names, host, key) == (["small"], "127.0.0.1", None)
    assert (options.backend, options.precision, options.batch) == ("auto", None, None)
    assert (options.wait, options.queue, options.max_body) == (5, 256, 16)
    assert capsys.readouterr().err == ""


def test_its_port_is_8000(folder: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, listening = list[int](), command._listening
    monkeypatch.setattr(command, "_listening", lambda host, port: asked.append(port) or listening(host, 0))  # type: ignore[func-returns-value]
    run_main(main, str(folder))
    run_main(main, str(folder), "--port", "65535")
    assert asked == [8000, 65535]


def test_who_opens_it_to_others_without_a_key_is_told(
    folder: Path, told: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_main(main, str(folder), "--port", "0", "--host", "0.0.0.0")
    assert capsys.readouterr().err == f"note: whoever reaches 0.0.0.0 may ask; {KEY} sets a key\n"
    run_main(main, str(folder), "--port", "0", "--host", "localhost")
    monkeypatch.setenv(KEY, "s3 cret")
    run_main(main, str(folder), "--port", "0", "--host", "0.0.0.0")
    assert [key for _, _, key, _ in told] == [None, None, "s3 cret"]
    assert capsys.readouterr().err == ""


def test_random_weights_are_told(tmp_path: Path, told: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    for name, random_weights in (("a", False), ("b", True)):
        (tmp_path / name).mkdir()
        small_bundles.bundle(tmp_path / name, model={"random_weights": random_weights})
    run_main(main, str(tmp_path / "a"), str(tmp_path / "b"), "--port", "0")
    assert told[0][0] == ["a", "b"]
    assert capsys.readouterr().err == "note: b has random weights; what it makes means nothing\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "65536"), "--port is 65536; it must be 1 to 65535, or 0"),
        (("--port", "-1"), "--port is -1; it must be 1 to 65535, or 0"),
        (("--batch", "0"), "--batch is 0; it must be at least 1"),
        (("--batch", "9" * 20), "--batch is 9{20}; it must be at least 1, at most 1,048,576"),
        (("--queue", "0"), "--queue is 0; it must be at least 1"),
        (("--max-body", "0"), "--max-body is 0; it must be at least 1"),
        (("--wait", "-0.5"), "--wait is -0.5; it must be 0 or more milliseconds"),
        (("--wait", "nan"), "--wait is nan"),
        (("--wait", "inf"), "--wait is inf"),
        (("--host", "no such host"), "of no such host: (?!Unknown error)[^(]+; choose another with --port or --host$"),
        (("--host", "ключ." * 99), "cannot listen on port 8000 of ключ"),
        (("--host", "é" * 80), "cannot listen on port 8000 of éé"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str, folder: Path, told: list[Any]) -> None:
    with pytest.raises(UserError, match=message):
        run_main(main, str(folder), *arguments)
    assert not told


@pytest.mark.parametrize("arguments", [("--wait", "0"), ("--queue", "1"), ("--batch", "1"), ("--max-body", "1")])
def test_the_least_is_taken(arguments: tuple[str, ...], folder: Path, told: list[Any]) -> None:
    run_main(main, str(folder), "--port", "0", *arguments)
    assert len(told) == 1


def test_a_port_that_is_taken_is_told_as_the_system_tells_it(folder: Path, told: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"^cannot listen on port {port} of 127.0.0.1: Address already in use; "):
            run_main(main, str(folder), "--port", port)


@pytest.mark.parametrize("key", ["", " x", "x ", "x\n", "ключ", "\t"])
def test_a_key_that_no_client_could_send_is_refused(
    key: str, folder: Path, told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(UserError, match=f"{KEY} must be printable ASCII without spaces around it, and not empty"):
        run_main(main, str(folder), "--port", "0")


def test_two_bundles_of_one_name_are_refused(folder: Path, tmp_path: Path, told: list[Any]) -> None:
    (tmp_path / "other" / "small").mkdir(parents=True)
    small_bundles.bundle(tmp_path / "other" / "small")
    with pytest.raises(UserError, match=r"/small and .*/other/small are both called small: rename one of the folders"):
        run_main(main, str(folder), str(tmp_path / "other" / "small"))


def test_without_its_library_it_is_told_how_to_install_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edge_sampler.runtime.serve.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"uvicorn is not installed, and serving needs it: pip install .*\[serve\]"):
        run_main(main, str(folder))


def test_the_queue_of_connections_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients at once wait until the server looks at them; the system refuses none."""
    asked = list[Any]()
    monkeypatch.setattr(socket, "create_server", lambda *told, **more: asked.append((told, more)))
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("localhost", socket.AF_INET)):
        command._listening(host, 80)
        (told, more) = asked.pop()
        assert told == ((host, 80),)
        assert more["family"] == family
        assert more["backlog"] >= 1000
