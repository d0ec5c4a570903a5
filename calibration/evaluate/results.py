"""Results on disk by what they are results of: what a kill leaves, the next run takes up; what one run solved, another
need not.
"""

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.calibration.evaluate.distributed import processes, total
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

MEANING = 2  # raise it when code that makes stored results changes them
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Cache:
    """Arrays by key, a file each in ``folder``; without a folder nothing is kept.

    Raises UserError where the folder cannot be written, before anything is computed for it.
    """

    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise UserError(f"cannot keep results in {self.folder}: {error.strerror}; see --cache") from error

    def recall(self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of ``key`` (JSON values), computed only when they are not there whole."""
        if self.folder is None:
            return dict(compute())
        path = self._path(self.folder, key)
        if (kept := _kept(path)) is not None:
            return kept
        arrays, content = dict(compute()), io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]  # its stub takes them for options
        try:
            with writable(path, force=True, tidy=False) as new, new.open("wb") as file:
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.write(content.getbuffer())
        except OSError as error:
            raise UserError(f"cannot keep results in {self.folder}: {error.strerror}; see --cache") from error
        return arrays

    def recall_together(
        self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """``recall`` of what all processes compute together: again, unless each of them has it."""
        if self.folder is not None:
            path = self._path(self.folder, key)
            if total(np.array([_kept(path) is not None], float))[0] < processes():
                path.unlink(missing_ok=True)
        return self.recall(key, compute)

    @staticmethod
    def _path(folder: Path, key: Mapping[str, Any]) -> Path:
        return folder / f"{hashlib.sha256(json.dumps([MEANING, key], sort_keys=True).encode()).hexdigest()}.result"


def _kept(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an entry: an .npz behind its SHA-256. None where it is not there, or has changed."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(memoryview(content)[DIGEST:]).digest() != content[:DIGEST]:
        return None
    with np.load(io.BytesIO(memoryview(content)[DIGEST:])) as stored:
        return {entry: stored[entry] for entry in stored.files}


NO_CACHE = Cache()
