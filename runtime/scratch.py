"""Folders for what is needed on the way, which a process that is killed leaves to the next one to remove."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import sweep, temporary


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder among the system's temporary ones, for this user alone. It goes at the end; those of the dead, now.

    Raises UserError where its place cannot be written, or is another's.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    place = Path(tempfile.gettempdir()) / f"edge-sampler-{user}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        told = place.lstat()
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}; let TMPDIR name another folder") from error
    if not stat.S_ISDIR(told.st_mode) or told.st_uid != user:
        raise UserError(f"{place} is no folder of this user's: let TMPDIR name another one")
    sweep(place)
    with temporary(place / "scratch") as folder:
        yield folder
