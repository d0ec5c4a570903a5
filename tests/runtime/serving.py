"""A server of bundles in a thread, and a client that sends just what it is told to."""

import argparse
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("uvicorn")

from edge_sampler.runtime import load
from edge_sampler.runtime.serve import command, server
from edge_sampler.runtime.serve.batches import Row
from edge_sampler.runtime.serve.model import Model

PATIENCE = 120  # seconds until a test gives up


def alone(bundle: Path) -> np.ndarray:
    """The images of seeds 0 to 63, each made alone."""
    with load(bundle) as sampler:
        return sampler.sample(range(64), batch=1)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert set(self.json) == {"error"}, self.json
        return str(self.json["error"])

    @property
    def array(self) -> np.ndarray:
        """The one output, of JSON or of bytes."""
        length = self.headers.get("inference-header-content-length")
        (output,) = json.loads(self.body[: int(length)] if length else self.body)["outputs"]
        dtype = {"FP32": "<f4", "UINT8": "u1"}[output["datatype"]]
        if not length:
            return np.array(output["data"], dtype).reshape(output["shape"])
        data = self.body[int(length) :]
        assert len(data) == output["parameters"]["binary_data_size"]
        return np.frombuffer(data, dtype).reshape(output["shape"])


@dataclass
class Gate:
    """Runs wait while it is shut; ``runs`` are the rows of each that was begun."""

    opened: threading.Event = field(default_factory=threading.Event)
    runs: list[list[Row]] = field(default_factory=list)


@dataclass
class Served:
    port: int
    servers: list[server.Server]
    gate: Gate
    thread: threading.Thread

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(
        self, path: str, body: bytes | str | None = None, method: str = "", headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = self.connect()
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, dict(headers or {}))
            return answer_of(connection)
        finally:
            connection.close()

    def infer(self, model: str, inputs: Mapping[str, Any], **more: Any) -> Answer:
        return self.ask(f"/v2/models/{model}/infer", json.dumps(asked(inputs, **more)))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Runs that begin here wait until the gate is opened, at the latest behind this."""
        self.gate.opened.clear()
        try:
            yield
        finally:
            self.gate.opened.set()

    def ready(self) -> bool:
        try:
            return self.ask("/v2/health/ready").status == 200
        except ConnectionError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        told = {f'{key}="{value}"' for key, value in labels.items()}
        for line in self.ask("/metrics").body.decode().splitlines():
            found, _, rest = line.partition("{")
            if found == f"edge_sampler_{name}" and told <= set(rest.partition("}")[0].split(",")):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name} of {labels}")


def asked(inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A request in JSON, of arrays."""
    names = {"i": "INT64", "f": "FP32", "b": "BOOL", "U": "BYTES"}
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    tensors = [
        {"name": name, "shape": list(a.shape), "datatype": names[a.dtype.kind], "data": a.tolist()}
        for name, a in arrays.items()
    ]
    return {"inputs": tensors, **more}


def answer_of(connection: HTTPConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())


def eventually(true: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


@contextmanager
def serving(
    folders: Sequence[Path], key: str | None = None, shut: bool = False, warm: bool = True, **options: Any
) -> Iterator[Served]:
    """A server of these bundles; with a gate in front of its runs, which is open but where ``shut``."""
    settings = argparse.Namespace(backend="auto", precision=None, batch=4, queue=64, wait=5.0, max_body=1)
    vars(settings).update(options)
    gate, servers, run = Gate(), list[server.Server](), Model._run

    def gated(model: Model, rows: Sequence[Row]) -> Any:
        if model.ready or not warm:
            gate.runs.append(list(rows))
            assert gate.opened.wait(PATIENCE)
        return run(model, rows)

    class Recorded(server.Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            servers.append(self)

    bundles = command._named(list(folders))
    listener = command._listening("127.0.0.1", 0)
    port = listener.getsockname()[1]
    failures = []

    def serve() -> None:
        try:
            server.serve(bundles, listener, key, settings)
        except BaseException as error:
            failures.append(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "_run", gated)
        patch.setattr(server, "Server", Recorded)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        served = Served(port, servers, gate, thread)
        try:
            if not shut:
                gate.opened.set()
            if warm:
                eventually(lambda: bool(failures) or served.ready())
            yield served
        finally:
            gate.opened.set()
            eventually(lambda: bool(servers))
            servers[0].handle_exit(15, None)
            thread.join(PATIENCE)
        assert not thread.is_alive()
        if failures:
            raise failures[0]
