"""Starts models and the HTTP server, and ends both: when it is told to, or a model cannot be loaded."""

import argparse
import asyncio
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

import uvicorn

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.serve.app import Service, make_app
from edge_sampler.runtime.serve.connection import Connection, telling_once
from edge_sampler.runtime.serve.model import Model

GRACE = 30  # seconds in which answers have to be sent when the server ends
STEP = 0.02  # seconds between looks at whether all is answered


class Server(uvicorn.Server):
    """Ends in order at the first signal, and at once at the second."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.draining:
            self.should_exit = True
            self.force_exit |= self._service.active > 0
        self._service.draining = True

    async def end_when_drained(self, step: float = STEP) -> None:
        while not self._service.draining or self._service.active:
            await asyncio.sleep(step)
        self.should_exit = True
        for body in self._service.bodies:
            body.cancel()


def serve(bundles: Mapping[str, Bundle], listener: socket.socket, key: str | None, options: argparse.Namespace) -> None:
    """Until a signal ends it. Raises UserError for a bundle that is damaged or cannot run here."""
    if not asyncio.run(_serve(bundles, listener, key, options)):
        sys.exit(143)  # as a shell has it


async def _serve(
    bundles: Mapping[str, Bundle], listener: socket.socket, key: str | None, options: argparse.Namespace
) -> bool:
    """Whether all that was accepted was answered."""
    models = [Model(bundle, name, options.queue, options.wait / 1e3) for name, bundle in bundles.items()]
    service = Service(models, options.max_body * 10**6)
    config = uvicorn.Config(
        make_app(service, key),
        loop="asyncio",
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = Server(config, service)
    asyncio.get_running_loop().set_exception_handler(telling_once())
    host, port = listener.getsockname()[:2]
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    tasks = [asyncio.create_task(server.end_when_drained())]

    async def start() -> None:
        try:
            for model in models:
                tasks.append(await model.start(options.backend, options.precision, options.batch))
                print(f"{model.name}: ready, by {model.description}", flush=True)
        except BaseException:
            server.should_exit = True
            raise

    starting = asyncio.create_task(start())
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
        for task in (*tasks, *server.server_state.tasks):  # the latter are requests, where it ends at once
            task.cancel()
        for model in models:
            await model.close()
    with suppress(asyncio.CancelledError):
        await starting
    return not server.force_exit
