"""Remembers Ctrl-C and SIGTERM, since libraries swallow what they raise, or make another error of it."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CTRL_C = 128 + signal.SIGINT  # as a shell has it
_statuses = list[int]()


def handle(number: int, _: object = None) -> None:
    """The handler of SIGINT and SIGTERM. Raises KeyboardInterrupt, as Python's own does, or SystemExit."""
    _statuses.append(128 + number)
    check()


def status() -> int:
    """What the first of them ends a command with, 130 or 143; 0 if none came."""
    return _statuses[0] if _statuses else 0


def forget() -> None:
    _statuses.clear()


def check() -> None:
    """Raises again what the first of them raised: asked before what was made takes its place."""
    if status() == CTRL_C:
        raise KeyboardInterrupt
    if status():
        sys.exit(status())


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Ctrl-C does not come to processes that are started inside, not even in their imports; this one is to end them.

    Where the system has no masks of signals, it comes as ever.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which children begin with
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
