"""Makes one shard, in whichever process: samples → a tar as WebDataset reads it, or arrays in a .npz."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.generate.job import Job, Shard, manifest_sha256
from edge_sampler.runtime.images import png, to_uint8
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.sampler import Sampler
from edge_sampler.runtime.verified import file_sha256


def make(part: Job, file: str) -> Shard:
    """Writes the shard ``file`` of this part of a job, whole or not at all.

    Raises UserError where the bundle is another by now or the file cannot be written, and BoundError for NaN.
    """
    sampler = opened(part.bundle, part.manifest_sha256, part.backend, part.precision)
    made = sampler.sample(part.seeds, part.batch, part.temperature, **part.conditions, **part.sizes)
    count = len(part.seeds)
    rows = {name: np.broadcast_to(values, (count, *values.shape[1:])) for name, values in part.conditions.items()}
    part = replace(part, conditions=rows)
    if not np.isfinite(made).all():
        wrong = int(np.argmax(~np.isfinite(made).reshape(len(made), -1).all(1)))
        raise BoundError(f"seed {part.seeds[wrong]} makes NaN or infinity; no shard was written of it")
    path = Path(part.out) / file
    try:
        with writable(path, force=True, tidy=False) as new:
            (write_tar if part.form == "webdataset" else write_npz)(new, part, made, sampler.bundle)
            sha256, size = file_sha256(new), new.stat().st_size
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room, and the same command goes on from what is there"
        ) from error
    return Shard(file, sha256, size, part.seeds[0], len(part.seeds), sampler.description)


@lru_cache(1)
def opened(bundle: str, manifest: str, backend: str, precision: str) -> Sampler:
    """The process's sampler, which stays open. Raises UserError where the bundle is not the one that was asked for."""
    found = Bundle.open(bundle)
    if manifest_sha256(found) != manifest:
        raise UserError(f"{bundle} was replaced while it was used: start again, into a new folder")
    return Sampler(found, backend, precision)


def write_npz(path: Path, part: Job, made: np.ndarray, bundle: Bundle) -> None:
    """Arrays: what is made, ``seeds``, and each condition by its name."""
    arrays = {bundle.output.name: made, "seeds": np.array(part.seeds), **part.conditions}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # its stub takes them for options


def write_tar(path: Path, part: Job, made: np.ndarray, bundle: Bundle) -> None:
    """By sample SEED.png, or SEED.npy of what is no picture, and SEED.json of its seed and conditions.

    The same samples make the same bytes: no times, no names of users.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members(part, made, bundle):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))


def members(part: Job, made: np.ndarray, bundle: Bundle) -> Iterator[tuple[str, bytes]]:
    is_image = bundle.dtype == "uint8" or bundle.output.is_image
    shown = to_uint8(made) if is_image else made
    for row, seed in enumerate(part.seeds):
        yield f"{seed:09d}.{'png' if is_image else 'npy'}", (png if is_image else npy)(shown[row])
        yield f"{seed:09d}.json", json.dumps(facts(part, row)).encode()


def facts(part: Job, row: int) -> dict[str, Any]:
    """A sample's seed, its conditions that are single numbers, and its texts."""
    told: dict[str, Any] = {"seed": part.seeds[row]}
    for name, values in part.conditions.items():
        if name in part.texts:
            text = part.texts[name]
            told[name] = text if isinstance(text, str) else text[row]
        elif values.ndim == 1:
            told[name] = values[row].item()
        else:
            told[f"{name}_sha256"] = hashlib.sha256(values[row].tobytes()).hexdigest()
    return told


def npy(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()
