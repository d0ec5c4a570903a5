"""The server's addresses, asked without a server: what each answers, and what is counted of it."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")

from starlette.exceptions import HTTPException
from starlette.requests import Request

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.inputs import Output
from edge_sampler.runtime.serve.app import UNEXPECTED, Service, error, make_app, query_of
from edge_sampler.runtime.serve.batches import QueueFullError
from edge_sampler.runtime.serve.metrics import Metrics
from edge_sampler.runtime.serve.model import RunError
from tests.runtime.serving import Answer

IMAGES = Output("images", (3, 2, 2))
SEEDS = b'{"inputs": [{"name": "seeds", "shape": [2], "datatype": "INT64", "data": [3, 7]}]}'
ONE = b'{"inputs": [{"name": "seeds", "shape": [1], "datatype": "INT64", "data": [3]}]}'
PICTURE = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 2, 2)


@dataclass
class Model:
    """Makes of each seed a picture that is as bright; ``fails`` is raised in its place."""

    name: str
    ready: bool = True
    fails: BaseException | None = None
    output: Output = IMAGES
    random_weights: bool = False
    waits: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)
    cancelled: int = 0

    @property
    def bundle(self) -> Any:
        return SimpleNamespace(output=self.output, random_weights=self.random_weights)

    @property
    def batches(self) -> Any:
        return SimpleNamespace(make=self.make)

    async def make(self, rows: Sequence[int]) -> list[np.ndarray]:
        try:
            await asyncio.sleep(self.waits)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails:
            raise self.fails
        return [PICTURE * (row / 10) for row in rows]

    def rows_of(self, asked: Any) -> list[int]:
        return [int(seed) for seed in asked.inputs["seeds"].array]

    def rows_of_query(self, items: list[tuple[str, str]]) -> list[int]:
        return [int(text) for _, text in items]

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name}


async def asking(
    app: Any, method: str, path: str, body: Sequence[bytes] = (), headers: Mapping[str, str] | None = None, **more: Any
) -> Answer:
    """By ASGI. A body's last piece ends it but where there is ``no_end``; then the client may be one who ``leaves``.

    ``faults``: what is raised behind the answer.
    """
    path, _, query = path.partition("?")
    told = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": told}
    pieces, sent = list(body) or [b""], list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces) or "no_end" in more}
        if "leaves" not in more:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with pytest.raises(more["faults"]) if "faults" in more else nullcontext():  # which uvicorn logs
        await app({**scope, "root_path": "", "http_version": "1.1", "scheme": "http"}, receive, send)
    start, *rest = sent
    given = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], given, b"".join(message.get("body", b"") for message in rest))


def ask(service: Service, method: str, path: str, *body: bytes, key: str | None = None, **more: Any) -> Answer:
    return asyncio.run(asyncio.wait_for(asking(make_app(service, key), method, path, body, **more), 60))


def served(*models: Model, largest: int = 1000, reading: float = 60.0) -> Service:
    return Service(models or (Model("a"),), largest, reading)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("draining", "ready", "status"),
    [(False, (True, True), 200), (False, (True, False), 503), (True, (True, True), 503)],
)
def test_ready_is_said_of_the_server_and_of_each_model(draining: bool, ready: tuple[bool, bool], status: int) -> None:
    service = served(Model("a", ready[0]), Model("b", ready[1]))
    service.draining = draining
    answer = ask(service, "GET", "/v2/health/ready")
    assert (answer.status, answer.json) == (status, {"ready": status == 200})
    for name, one in zip("ab", ready, strict=True):
        for path in (f"/v2/models/{name}/ready", f"/v2/models/{name}/versions/1/ready"):
            answer = ask(service, "GET", path)
            assert answer.json == {"name": name, "ready": one and not draining}
            assert answer.status == (200 if one and not draining else 503)
    assert ask(service, "GET", "/v2/health/live").json == {"live": True}


def test_what_is_served_here() -> None:
    service = served(Model("a"), Model("b", ready=False))
    told = ask(service, "GET", "/v2").json
    assert told == {
        "name": "edge-sampler",
        "version": version("edge-sampler"),
        "extensions": ["binary_tensor_data", "model_repository(index)"],
    }
    assert ask(service, "POST", "/v2/repository/index").json == [
        {"name": "a", "version": "1", "state": "READY", "reason": ""},
        {"name": "b", "version": "1", "state": "LOADING", "reason": ""},
    ]
    for path in ("/v2/models/b", "/v2/models/b/versions/1"):
        assert ask(service, "GET", path).json == {"name": "b"}
    page = ask(service, "GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    counted = ask(service, "GET", "/metrics")
    assert counted.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'edge_sampler_queue_images{model="b"} 0' in counted.body


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v2/models/c", 404, "unknown model 'c'; served here: a, b"),
        ("POST", "/v2/models/c/versions/2/infer", 404, "unknown model 'c'; served here: a, b"),
        ("GET", "/v2/models/b/versions/2", 404, "unknown model 'b, version 2'; served here: a, b"),
        ("GET", f"/v2/models/{'c' * 99}", 404, f"unknown model '{'c' * 79}; served here: a, b"),
        ("GET", "/v3", 404, "there is nothing at /v3; see docs/deploy.md for the addresses"),
        ("GET", "/v2/", 404, "there is nothing at /v2/; see docs/deploy.md for the addresses"),
        ("GET", "/v2/models/a/infer", 405, "GET is not for /v2/models/a/infer; allowed: POST"),
        ("POST", "/v2/health/live", 405, "POST is not for /v2/health/live; allowed: GET, HEAD"),
        ("GET", "/v2/repository/index", 405, "GET is not for /v2/repository/index; allowed: POST"),
    ],
)
def test_addresses_that_are_none(method: str, path: str, status: int, told: str) -> None:
    answer = ask(served(Model("a"), Model("b")), method, path, SEEDS)
    found = re.sub("HEAD, GET", "GET, HEAD", answer.json["error"])  # of a set
    assert (answer.status, found) == (status, told)


def test_images_are_made_of_what_was_asked() -> None:
    service = served(Model("a"))
    for path in ("/v2/models/a/infer", "/v2/models/a/versions/1/infer"):
        (made,) = ask(service, "POST", path, SEEDS).json["outputs"]
        assert (made["name"], made["datatype"], made["shape"]) == ("images", "FP32", [2, 3, 2, 2])
        np.testing.assert_allclose(np.reshape(made["data"], made["shape"]), [PICTURE * 0.3, PICTURE * 0.7], rtol=1e-6)
    named = SEEDS[:-1] + b', "outputs": [{"name": "images", "parameters": {"binary_data": true}}]}'
    answer = ask(service, "POST", "/v2/models/a/infer", named)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.body[length:] == np.stack([PICTURE * np.float32(0.3), PICTURE * np.float32(0.7)]).tobytes()
    other = ask(service, "POST", "/v2/models/a/infer", named.replace(b'"images"', b'"pictures"'))
    assert (other.status, other.json["error"]) == (400, "unknown output 'pictures'; this model makes images")
    head = SEEDS.replace(b'"data": [3, 7]', b'"parameters": {"binary_data_size": 16}')
    bits = ask(service, "POST", "/v2/models/a/infer", head, np.array([3, 7]).tobytes(),
               headers={"Inference-Header-Content-Length": str(len(head))})  # fmt: skip
    assert bits.json["outputs"] == [{**made}]
    assert service.models["a"].metrics.requests == {"ok": 3 + 1, "bad_request": 1}
    assert sum(service.models["a"].metrics.seconds.counts) == 4


@pytest.mark.parametrize(("random_weights", "comment"), [(False, None), (True, "RANDOM WEIGHTS")])
def test_a_picture_is_one_of_these_weights(random_weights: bool, comment: str | None) -> None:
    answer = ask(served(Model("a", random_weights=random_weights)), "GET", "/v2/models/a/image?seed=7")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(BytesIO(answer.body)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), to_uint8(PICTURE[None] * np.float32(0.7))[0])
        assert picture.info.get("Comment") == comment


def test_what_is_no_picture_has_none() -> None:
    service = served(Model("a", output=Output("actions", (16, 2))))
    answer = ask(service, "GET", "/v2/models/a/image?seed=7")
    assert (answer.status, answer.json["error"]) == (404, "a makes actions, no pictures: ask infer")
    assert service.models["a"].metrics.requests == {"bad_request": 1}


@pytest.mark.parametrize(
    ("fails", "status", "outcome", "told"),
    [
        (QueueFullError(), 429, "queue_full", "the queue of a is full; ask again later"),
        (UserError("seed\n-1"), 400, "bad_request", "seed -1"),
        (RunError("NaN"), 500, "failed", "NaN"),
        (HTTPException(415, "zipped"), 415, "bad_request", "zipped"),
        (asyncio.CancelledError(), 503, "unavailable", "the server ended before the answer"),
        (KeyError("ours"), 500, "failed", UNEXPECTED),
    ],
    ids=repr,
)
@pytest.mark.parametrize("path", ["infer", "image"])
def test_an_error_is_told_and_counted(
    path: str, fails: BaseException, status: int, outcome: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service = served(Model("a", fails=fails), Model("b"))
    method, of = ("POST", f"/v2/models/a/{path}") if path == "infer" else ("GET", f"/v2/models/a/{path}?seed=1")
    answer = ask(service, method, of, SEEDS if path == "infer" else b"")
    assert (answer.status, answer.json) == (status, {"error": told})
    assert answer.headers["content-type"] == "application/json"
    assert service.models["a"].metrics.requests == {outcome: 1}
    assert sum(service.models["a"].metrics.seconds.counts) == 0  # of those that were answered
    assert not service.models["b"].metrics.requests
    assert service.active == 0
    assert answer.headers.get("retry-after") == ("1" if status == 429 else None)
    assert answer.headers.get("connection") == ("close" if status == 503 else None)
    assert ("KeyError: 'ours'" in capsys.readouterr().err) == (told == UNEXPECTED)


@pytest.mark.parametrize(
    ("draining", "ready", "told"),
    [
        (True, True, "the server is ending; ask again later"),
        (True, False, "the server is ending; ask again later"),
        (False, False, "a is not ready yet; ask again later"),
    ],
)
def test_who_comes_too_early_or_late_is_told_to_ask_again(draining: bool, ready: bool, told: str) -> None:
    service = served(Model("a", ready=ready))
    service.draining = draining
    for method, path in (("POST", "/v2/models/a/infer"), ("GET", "/v2/models/a/image?seed=1")):
        answer = ask(service, method, path, SEEDS)
        assert (answer.status, answer.json["error"]) == (503, told)
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
    assert service.models["a"].metrics.requests == {"unavailable": 2}


def test_what_is_accepted_is_counted_until_it_is_answered() -> None:
    service, seen = served(model := Model("a")), list[int]()
    model.rows_of = lambda asked: seen.append(service.active) or [1]  # type: ignore[method-assign, func-returns-value]
    ask(service, "POST", "/v2/models/a/infer", ONE)
    model.fails = KeyError()
    ask(service, "POST", "/v2/models/a/infer", ONE)
    assert (seen, service.active) == ([1, 1], 0)


def test_a_request_has_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its arrival; not those of one that was refused."""
    times = iter([10.0, 25.0, 30.0])
    monkeypatch.setattr("edge_sampler.runtime.serve.app.time.perf_counter", lambda: next(times))
    service = served(Model("a"))
    ask(service, "POST", "/v2/models/a/infer", ONE)
    ask(service, "POST", "/v2/models/a/infer", b"{")
    assert service.models["a"].metrics.seconds.sum == 15.0


def test_a_fault_of_ours_elsewhere_is_told_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "metadata", lambda self: dict[str, str]()["absent"])
    answer = ask(served(), "GET", "/v2/models/a", faults=KeyError)
    assert (answer.status, answer.json) == (500, {"error": UNEXPECTED})


@pytest.mark.parametrize(
    ("given", "there"),
    [(None, False), ("Bearer s3cre", False), ("Bearer s3cret2", False), ("s3cret", False), ("Bearer s3cret", True)],
)
def test_a_key_opens_all_but_what_is_open(given: str | None, there: bool) -> None:
    headers = {} if given is None else {"Authorization": given}

    def status(path: str, method: str = "GET") -> int:
        answer = ask(served(), method, path, SEEDS, key="s3cret", headers=headers)
        if answer.status == 401:
            assert answer.json == {"error": "the key is missing or wrong: send Authorization: Bearer KEY"}
            assert (answer.headers["www-authenticate"], answer.headers["connection"]) == ("Bearer", "close")
        return answer.status

    for path in ("/", "/v2/health/live", "/v2/health/ready"):
        assert status(path) == 200
    for path in ("/metrics", "/v2", "/v2/models/a", "/v2/models/a/ready", "/v2/models/a/image?seed=1"):
        assert status(path) == (200 if there else 401)
    assert status("/v2/models/a/infer", "POST") == (200 if there else 401)
    for path in ("/v3", "/v2/models/b", "/v2/health/../models", "/v2/health/live/"):
        assert status(path) == (404 if there else 401)


def test_an_error_is_one_line_in_json() -> None:
    made = error(418, " a\n\tb ", {"Retry-After": "1"})
    assert (made.status_code, made.body) == (418, b'{"error": "a b"}')
    assert (made.headers["retry-after"], made.media_type) == ("1", "application/json")


def test_a_query_is_text_in_utf_8() -> None:
    for query in (b"a=caf%C3%A9&b=", "a=café&b=".encode()):
        assert query_of(Request({"type": "http", "query_string": query})) == [("a", "café"), ("b", "")]
    for seed in ("caf%E9", "%FF%FE", "7&prompt=%C3"):
        answer = ask(served(), "GET", f"/v2/models/a/image?seed={seed}")
        assert answer.status == 400
        assert "the query is text that is no UTF-8" in answer.json["error"]
