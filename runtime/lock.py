"""One process at a time: a lock on a file, which ends with the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sampler.runtime.errors import UserError


@contextmanager
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Holds the lock ``path``, a file that it makes and leaves. Raises UserError ``otherwise`` where another does."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        if not _taken(file):
            raise UserError(otherwise)
        yield
    finally:
        os.close(file)


def _taken(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
