"""The HTTP server's connections: how many there are at once, and how long one may say nothing."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
# In what asyncio says of each accept that fails, and of each of its later tries, once the server has ended meanwhile.
NOT_ACCEPTED = ("socket.accept() out of system resource", "_start_serving")


class Connection(H11Protocol):
    """One of ``most`` at once: the next is closed. It is closed, too, where ``patience`` seconds bring no request's
    whole head, whatever bytes come; uvicorn's own time begins behind an answer, and the next byte ends it. It is cut
    where nobody takes a byte of an answer for ``stalled`` seconds.
    """

    most = 512
    patience, stalled = 10.0, 60.0
    _silence: asyncio.TimerHandle
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.most:
            transport.write(FULL)
            self.loop.call_soon(transport.close)  # behind asyncio's own start of reading

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._silence.cancel()

    def on_response_complete(self) -> None:
        self._await_head()
        super().on_response_complete()  # handles the next request, where it has come already

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._silence.cancel()
        if self._unread:
            self._unread.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()

    def _await_reader(self, before: int | None = None) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting == before:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self.stalled, self._await_reader, waiting)

    def _await_head(self) -> None:
        self._silence = self.loop.call_later(self.patience, self.timeout_keep_alive_handler)


def telling_once() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """A loop's handler of errors, which tells once that no connection can be accepted; asyncio tries for ever."""
    told = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        if not any(words in context["message"] for words in NOT_ACCEPTED):
            loop.default_exception_handler(context)
        elif not told:
            told = True
            problem = f"no connection can be accepted ({context['exception']})"
            print(f"note: {problem}; raise the limit of open files (ulimit -n)", file=sys.stderr, flush=True)

    return handle
