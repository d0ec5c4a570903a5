"""Remembers Ctrl-C, since a library may swallow it while it computes, or turn it into another error."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_pressed = list[bool]()


def press(*_: object) -> None:
    """The handler of SIGINT. Raises KeyboardInterrupt, as Python's own does."""
    _pressed.append(True)
    raise KeyboardInterrupt


def pressed() -> bool:
    return bool(_pressed)


def forget() -> None:
    _pressed.clear()


def check() -> None:
    """Raises KeyboardInterrupt where Ctrl-C was pressed: asked before what was made takes its place."""
    if _pressed:
        raise KeyboardInterrupt


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
