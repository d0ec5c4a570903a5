"""One process at a time: a lock on a file, which ends with the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_sampler.runtime.errors import UserError


class NoLocksError(OSError):
    """A disk has no locks, as some that networks share."""


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds the lock ``path``, a file that goes with it. Raises UserError ``otherwise`` where another does."""
    try:
        file = take(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    if file is None:
        raise UserError(otherwise)
    try:
        yield
    finally:
        release(path, file)


def take(path: Path) -> int | None:
    """Locks a file, made where there is none; None where another process has it. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)  # no file elsewhere
    try:
        if _taken(file) and os.path.samestat(os.fstat(file), path.stat()):  # else it is one that was just let go
            return file
    except FileNotFoundError:
        pass
    except NoLocksError:
        release(path, file)
        raise
    except BaseException:
        os.close(file)
        raise
    os.close(file)
    return None


def release(path: Path, file: int) -> None:
    with suppress(OSError):  # Windows removes no open file: there it stays, and is free
        path.unlink()
    os.close(file)


def _taken(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # of Linux, of Windows
        return False
    except OSError as error:
        raise NoLocksError(error.errno, f"this disk has no locks ({error.strerror}): choose another") from error
    return True
