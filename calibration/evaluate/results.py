"""Intermediate results on disk. A key lists all that a result depends on.

So a run that was killed goes on, and later runs use again what they share with it.
"""

import hashlib
import io
import json
import re
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.calibration.evaluate.distributed import processes, total
from edge_sampler.calibration.evaluate.network import Meter
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import make_all, sweep, writable

MEANING = 3  # raise it when code that makes stored results changes them
DIGEST = hashlib.sha256().digest_size
EVALUATIONS = "evaluations"  # the name, in an entry, of how many it took to compute
LIMIT = 20 * 10**9  # bytes that the folder may hold
ENTRY = re.compile(r"[0-9a-f]{64}\.(result|npz)")  # the latter of earlier versions


@dataclass(frozen=True)
class Cache:
    """Arrays by key, a file each in ``folder``; without a folder nothing is kept.

    Beyond ``limit`` bytes, entries that were not used for longest are removed; what a dead writer left goes at once.
    Raises UserError where the folder cannot be written, before anything is computed for it.
    """

    folder: Path | None = None
    limit: int = LIMIT

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        try:
            make_all(self.folder)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UserError(f"cannot keep results in {self.folder}: {error.strerror}; see --cache") from error
        sweep(self.folder)

    def recall(
        self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]], meter: Meter
    ) -> dict[str, np.ndarray]:
        """The arrays of ``key`` (JSON values): read, or computed where the entry is missing or damaged.

        The meter counts the evaluations that they took, whenever that was.
        """
        if self.folder is None:
            return dict(compute())
        path = self._path(self.folder, key)
        _check_entry(path)
        if (kept := _kept(path)) is not None:
            with suppress(OSError):
                path.touch()  # it was used
            meter.evaluations += int(kept.pop(EVALUATIONS))
            return kept
        before = meter.evaluations
        arrays, content = dict(compute()), io.BytesIO()
        entry = {**arrays, EVALUATIONS: np.array(meter.evaluations - before)}
        np.savez(content, **entry)  # type: ignore[arg-type]  # its stub takes them for options
        make_room(self.folder, self.limit - content.getbuffer().nbytes)
        try:
            with writable(path, force=True, tidy=False) as new, new.open("wb") as file:
                file.write(_digest(path, content.getbuffer()))
                file.write(content.getbuffer())
        except OSError as error:
            raise UserError(f"cannot keep results in {self.folder}: {error.strerror}; see --cache") from error
        return arrays

    def recall_together(
        self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]], meter: Meter
    ) -> dict[str, np.ndarray]:
        """``recall`` of what all processes compute together; they compute it again unless each of them has it."""
        if self.folder is not None:
            path = self._path(self.folder, key)
            _check_entry(path)
            if total(np.array([_kept(path) is not None], float))[0] < processes():
                path.unlink(missing_ok=True)
        return self.recall(key, compute, meter)

    @staticmethod
    def _path(folder: Path, key: Mapping[str, Any]) -> Path:
        return folder / f"{hashlib.sha256(json.dumps([MEANING, key], sort_keys=True).encode()).hexdigest()}.result"


def make_room(folder: Path, limit: int) -> None:
    """Removes entries until at most ``limit`` bytes remain, first those that were not used for longest."""
    with suppress(OSError):  # another process may make room as well
        entries = [(path.stat(), path) for path in folder.iterdir() if ENTRY.fullmatch(path.name)]
        over = sum(status.st_size for status, _ in entries) - limit
        for status, path in sorted(entries, key=lambda entry: entry[0].st_mtime_ns) if over > 0 else ():
            if over <= 0:
                break
            path.unlink(missing_ok=True)
            over -= status.st_size


def _check_entry(path: Path) -> None:
    """Raises UserError for what is no file, not even behind a link, in the place of an entry."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UserError(f"{path} is no file, and would be one of the cache: remove it")


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an entry: an .npz behind its ``_digest``. None where none is there, or not what was kept there."""
    try:
        content = memoryview(path.read_bytes())
        if _digest(path, content[DIGEST:]) != content[:DIGEST]:
            return None
        with np.load(io.BytesIO(content[DIGEST:])) as stored:
            found = {entry: stored[entry] for entry in stored.files}
    except (OSError, MemoryError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return found if EVALUATIONS in found else None


def _digest(path: Path, content: memoryview) -> bytes:
    """Of an entry's name, which is its key's hash, and of its content: so no entry passes for another's."""
    digest = hashlib.sha256(path.name.encode())
    digest.update(content)
    return digest.digest()


NO_CACHE = Cache()
