"""What is to be made: a bundle's samples of a range of seeds, in shards; and the record of those that are there."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import read_json, write_json
from edge_sampler.runtime.manifest import HASH, misfit
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.verified import PIECE, file_sha256

FORMATS = {"webdataset": ".tar", "npz": ".npz"}
RECORD = "shards.json"
SHARD = {"file": str, "sha256": str, "bytes": int, "first": int, "count": int, "by": str}  # as ``Shard`` has them


@dataclass(frozen=True)
class Job:
    """A bundle's samples of ``seeds``, so many to a shard.

    Args:
        bundle: its folder, absolute, since workers may start elsewhere.
        manifest_sha256: of its manifest, so that all workers run the same.
        out: the folder of shards, absolute.
        form: one of ``FORMATS``.
        precision: which all workers run, though none was asked for.
        conditions: [len(seeds), *shape], checked; in a part [1, *shape] where one is for all.
        texts: what was told of conditions of text, one or one for each seed; for people who read the shards.
        sizes: of the axes with names.
    """

    bundle: str
    manifest_sha256: str
    out: str
    seeds: range
    shard: int
    form: str
    backend: str
    precision: str
    batch: int | None
    temperature: float
    conditions: Mapping[str, np.ndarray]
    texts: Mapping[str, Any]
    sizes: Mapping[str, int]

    @property
    def shards(self) -> int:
        return -(-len(self.seeds) // self.shard)

    def file(self, index: int) -> str:
        return f"shard-{index:06d}{FORMATS[self.form]}"

    def part(self, index: int) -> "Job":
        """One shard as a job, with its own seeds and conditions alone."""
        rows = slice(index * self.shard, (index + 1) * self.shard)
        conditions = {
            name: np.array(values[:1] if one_for_all(values) else values[rows])
            for name, values in self.conditions.items()
        }
        texts = {name: told if isinstance(told, str) else told[rows] for name, told in self.texts.items()}
        return replace(self, seeds=self.seeds[rows], conditions=conditions, texts=texts)

    def record(self, bundle: Bundle) -> dict[str, Any]:
        """What tells its samples, JSON values: shards of another record are of another job."""
        return {
            "model": bundle.manifest["model"]["name"],
            "fingerprint": bundle.manifest["model"]["fingerprint"],
            "precision": self.precision,
            "graph_sha256": bundle.manifest["files"].get(bundle.graph_name(self.precision), {}).get("sha256"),
            "plan_sha256": bundle.plan_of(self.precision).sha256,
            "seeds": [self.seeds[0], self.seeds[-1]],
            "shard": self.shard,
            "format": self.form,
            "temperature": self.temperature,
            "sizes": dict(self.sizes),
            "conditions": {name: digest(values) for name, values in self.conditions.items()},
        }


@dataclass(frozen=True)
class Shard:
    """One that was written. ``by`` is the backend that made it."""

    file: str
    sha256: str
    bytes: int
    first: int
    count: int
    by: str


def digest(values: np.ndarray) -> str:
    """SHA-256 of an array's values, in pieces; of one for all seeds, that one and how many there are."""
    hashed = hashlib.sha256(repr((values.shape, str(values.dtype))).encode())
    rows = values[:1] if one_for_all(values) else values
    count = max(1, PIECE // max(1, rows[0].nbytes))
    for start in range(0, len(rows), count):
        hashed.update(rows[start : start + count].tobytes())
    return hashed.hexdigest()


def one_for_all(values: np.ndarray) -> bool:
    """Whether all rows are one in memory, as ``Inputs.check`` returns what is given once."""
    return values.strides[0] == 0


def manifest_sha256(bundle: Bundle) -> str:
    return str(bundle.manifest[HASH])


def finished(out: Path, record: Mapping[str, Any]) -> dict[str, Shard]:
    """The shards of this very job that are whole in ``out``, by file; one that has changed is not among them.

    Raises UserError where ``out`` holds something else, or another job's shards.
    """
    path = out / RECORD
    if not path.exists():
        others = sorted(one.name for one in out.iterdir() if not one.name.startswith(".")) if out.is_dir() else []
        if others:
            raise UserError(f"{out} holds {others[0]} and no {RECORD}: name a new folder")
        return {}
    try:
        stored = read_json(path)
        if wrong := misfit(stored, {"job": {}, "shards": [SHARD]}):
            raise ValueError(wrong)
        shards = {one["file"]: Shard(**{name: one[name] for name in SHARD}) for one in stored["shards"]}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): name a new folder") from error
    told = stored["job"]
    if different := [name for name in record if told.get(name) != record[name]]:
        name = different[0]
        raise UserError(
            f"{out} holds shards of another job: its {name} is {told.get(name)}, and {record[name]} is asked for: "
            "name a new folder, or go on with the same command"
        )
    if odd := [name for name, one in shards.items() if not in_place(one, record)]:
        raise UserError(f"{path} is damaged ({odd[0]!r:.80} has not the seeds of a shard): name a new folder")
    return {name: one for name, one in shards.items() if whole(out / Path(name).name, one)}


def in_place(shard: Shard, record: Mapping[str, Any]) -> bool:
    """Whether it has the seeds that the job's shards have from its first one on."""
    (first, last), size = record["seeds"], record["shard"]
    return shard.first in range(first, last + 1, size) and shard.count == min(size, last + 1 - shard.first)


def whole(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256


def write_record(out: Path, record: Mapping[str, Any], shards: Mapping[str, Shard], complete: bool) -> None:
    """The list of shards, whole or as it was."""
    listed = [asdict(shards[name]) for name in sorted(shards)]
    with writable(out / RECORD, force=True, tidy=False) as path:
        write_json(path, {"job": record, "complete": complete, "shards": listed})


def missing(job: Job, there: Mapping[str, Shard]) -> Iterator[tuple[Job, str]]:
    """The shards that are still to be made, and their files, one by one."""
    return ((job.part(index), name) for index in range(job.shards) if (name := job.file(index)) not in there)
