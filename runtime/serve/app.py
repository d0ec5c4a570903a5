"""The HTTP server's addresses, as an ASGI application."""

import asyncio
import hmac
import json
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import png, to_uint8
from edge_sampler.runtime.serve import metrics
from edge_sampler.runtime.serve.batches import QueueFullError, Row
from edge_sampler.runtime.serve.model import Model, RunError
from edge_sampler.runtime.serve.protocol import HEAD_LENGTH, read_request, write_response

OPEN = ("/", "/v2/health/live", "/v2/health/ready")  # without the key
PAGE = Path(__file__).with_name("page.html")
READING = 60.0  # seconds
LARGE = 2**16  # bytes of a body
HELD = 16  # times the largest body: bytes of all bodies at once
UNEXPECTED = "a fault of the server, which its standard error tells of"
OUTCOMES = {429: "queue_full", 499: "cancelled", 503: "unavailable"}  # of statuses; 4xx is bad_request, 500 failed
POLICY = "default-src 'none'; img-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
Work = Callable[[Model], Awaitable[Response]]


class Service:
    """Models by name, and what is common to their addresses.

    Args:
        largest_body: bytes of a request.
        reading: seconds in which a body has to arrive.
    """

    def __init__(self, models: Sequence[Model], largest_body: int, reading: float = READING) -> None:
        self.models = {model.name: model for model in models}
        self.largest_body = largest_body
        self.reading = reading
        self.draining = False
        self.active = 0  # requests that were accepted and have no answer yet
        self.bodies = set[asyncio.Task[bytes]]()  # that have not come whole: of requests that nobody accepted yet
        self._large = ThreadPoolExecutor(1)  # reads large bodies one by one, so that small ones wait for none
        self.held = Counter[Request]()  # bytes of each request's body, until it has its answer

    @property
    def ready(self) -> bool:
        return not self.draining and all(model.ready for model in self.models.values())

    def model(self, request: Request) -> Model:
        name, asked_version = request.path_params["name"], request.path_params.get("version", "1")
        if name not in self.models or asked_version != "1":
            told = name if name not in self.models else f"{name}, version {asked_version}"
            raise HTTPException(404, f"unknown model {told!r:.80}; served here: {', '.join(self.models)}")
        return self.models[name]

    async def about(self, request: Request) -> Response:
        extensions = ["binary_tensor_data", "model_repository(index)"]
        return JSONResponse({"name": "edge-sampler", "version": version("edge-sampler"), "extensions": extensions})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def is_ready(self, request: Request) -> Response:
        return JSONResponse({"ready": self.ready}, 200 if self.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        model = self.model(request)
        ready = model.ready and not self.draining
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(self.model(request).metadata())

    async def index(self, request: Request) -> Response:
        return JSONResponse(
            [
                {"name": name, "version": "1", "state": "READY" if model.ready else "LOADING", "reason": ""}
                for name, model in self.models.items()
            ]
        )

    async def counted(self, request: Request) -> Response:
        written = metrics.page({name: model.metrics for name, model in self.models.items()})
        return Response(written, media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        return Response(PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": POLICY})

    async def infer(self, request: Request) -> Response:
        async def answer(model: Model) -> Response:
            if "content-encoding" in request.headers:
                raise HTTPException(415, "the body has a Content-Encoding; send it plain")
            self._check_open(model)
            body = await self._body(request)
            with self._accepted(model):
                pool = self._large if len(body) > LARGE else None
                in_thread = partial(asyncio.get_running_loop().run_in_executor, pool)
                asked = await in_thread(read_request, body, request.headers.get(HEAD_LENGTH))
                if unknown := [name for name in asked.outputs if name != model.bundle.output.name]:
                    raise UserError(f"unknown output {unknown[0]!r:.60}; this model makes {model.bundle.output.name}")
                made = await self._made(request, model, await in_thread(model.rows_of, asked))
                outputs = {model.bundle.output.name: np.stack(made)}
                written, headers = await asyncio.to_thread(write_response, asked, model.name, outputs)
                return Response(written, headers=headers)

        return await self._answered(request, answer)

    async def image(self, request: Request) -> Response:
        async def answer(model: Model) -> Response:
            if not model.bundle.output.is_image:
                raise HTTPException(404, f"{model.name} makes {model.bundle.output.name}, no pictures: ask infer")
            with self._accepted(model):
                rows = await asyncio.to_thread(model.rows_of_query, query_of(request))
                made = await self._made(request, model, rows)
                (pixels,) = to_uint8(made[0][None])
                comment = "RANDOM WEIGHTS" if model.bundle.random_weights else ""
                picture = await asyncio.to_thread(png, pixels, comment)
                return Response(picture, media_type="image/png")

        return await self._answered(request, answer)

    async def _answered(self, request: Request, answer: Work) -> Response:
        """What ``answer`` makes, or the error that it raises; counted among the model's requests."""
        model, started = self.model(request), time.perf_counter()
        try:
            response = await answer(model)
            model.metrics.seconds.add(time.perf_counter() - started)
        except QueueFullError:
            response = error(429, f"the queue of {model.name} is full; ask again later", {"Retry-After": "1"})
        except asyncio.CancelledError:  # by a second signal, or while its body came
            response = error(503, "the server ended before the answer", {"Connection": "close"})
        except ClientDisconnect:
            response = error(499, "the client went away")
        except UserError as problem:
            response = error(400, str(problem))
        except HTTPException as problem:
            response = error(problem.status_code, problem.detail, problem.headers)
        except RunError as problem:
            response = error(500, str(problem))
        except Exception:
            traceback.print_exc()
            response = error(500, UNEXPECTED)
        finally:
            del self.held[request]
        status = response.status_code
        family = "ok" if status < 400 else "bad_request" if status < 500 else "failed"
        model.metrics.requests[OUTCOMES.get(status, family)] += 1
        return response

    def _check_open(self, model: Model) -> None:
        """Refuses a request while the model loads or the server ends."""
        if self.draining or not model.ready:
            told = "the server is ending" if self.draining else f"{model.name} is not ready yet"
            raise HTTPException(503, f"{told}; ask again later", {"Retry-After": "1", "Connection": "close"})

    @contextmanager
    def _accepted(self, model: Model) -> Iterator[None]:
        """From here on the server does not end without an answer."""
        self._check_open(model)
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def _body(self, request: Request) -> bytes:
        """Refuses one that is too large before reading it, or where it does not say so, as soon as it is."""
        too_large = HTTPException(413, f"a request has {self.largest_body} bytes at most", {"Connection": "close"})
        if {"content-length", "transfer-encoding"} <= set(request.headers):
            raise HTTPException(400, "give Content-Length or Transfer-Encoding, not both", {"Connection": "close"})
        if int(request.headers.get("content-length", 0)) > self.largest_body:
            raise too_large

        async def read() -> bytes:
            body = bytearray()
            async for piece in request.stream():
                body += piece
                self.held[request] = len(body)
                if len(body) > self.largest_body:
                    raise too_large
                if self.held.total() > HELD * self.largest_body:
                    told = "the server holds all that it can; ask again later"
                    raise HTTPException(503, told, {"Retry-After": "1", "Connection": "close"})
            return bytes(body)

        body = asyncio.create_task(read())
        self.bodies.add(body)
        body.add_done_callback(self.bodies.discard)
        try:
            return await asyncio.wait_for(body, self.reading)
        except asyncio.TimeoutError as late:
            raise HTTPException(408, f"the body took more than {self.reading:.0f} s", {"Connection": "close"}) from late

    async def _made(self, request: Request, model: Model, rows: Sequence[Row]) -> list[np.ndarray]:
        """What the model makes of the rows; it is given up when the client goes away."""

        async def until_gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        made, gone = asyncio.create_task(model.batches.make(rows)), asyncio.create_task(until_gone())
        try:
            await asyncio.wait((made, gone), return_when=asyncio.FIRST_COMPLETED)
            if not made.done():
                raise HTTPException(499, "the client went away")
            return made.result()
        finally:
            for task in (made, gone):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await gone


def query_of(request: Request) -> list[tuple[str, str]]:
    """A URL's names and values. Raises UserError for bytes that are no UTF-8, in whose place Starlette takes others."""
    try:
        return parse_qsl(request.scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError as error:
        raise UserError(f"the query is text that is no UTF-8: {error}") from error


def make_app(service: Service, key: str | None) -> ASGIApp:
    """``key``: what everything but the page and the server's health asks for, as ``Authorization: Bearer KEY``."""
    model = [("", service.metadata, "GET"), ("/ready", service.model_ready, "GET"), ("/infer", service.infer, "POST")]
    routes = [
        Route("/", service.page),
        Route("/metrics", service.counted),
        Route("/v2", service.about),
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.is_ready),
        Route("/v2/repository/index", service.index, methods=["POST"]),
        Route("/v2/models/{name}/image", service.image),
        *(
            Route(f"/v2/models/{{name}}{versions}{end}", endpoint, methods=[method])
            for end, endpoint, method in model
            for versions in ("", "/versions/{version}")
        ),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _server_error})
    app.router.redirect_slashes = False
    return app if key is None else _guarded(app, f"Bearer {key}".encode())


def _guarded(app: ASGIApp, wanted: bytes) -> ASGIApp:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"] in OPEN or hmac.compare_digest(given, wanted):  # in constant time
            await app(scope, receive, send)
        else:
            headers = {"WWW-Authenticate": "Bearer", "Connection": "close"}
            refused = error(401, "the key is missing or wrong: send Authorization: Bearer KEY", headers)
            await refused(scope, receive, send)

    return guarded


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """The protocol's form of an error."""
    body = json.dumps({"error": " ".join(message.split())})
    return Response(body, status, headers, "application/json")


async def _http_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException)
    told, headers = problem.detail, problem.headers or {}
    if problem.status_code == 405:
        told = f"{request.method} is not for {request.url.path}; allowed: {headers.get('Allow')}"
    elif told == "Not Found":  # Starlette's own
        told = f"there is nothing at {request.url.path}; see docs/deploy.md for the addresses"
    return error(problem.status_code, told, headers)


async def _server_error(request: Request, problem: Exception) -> Response:
    return error(500, UNEXPECTED)  # Starlette raises it again, and uvicorn logs it
