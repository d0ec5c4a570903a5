"""Damaged and hostile inputs without end: python -m tests.fuzz --minutes 60 --out crashes/

Each reader gets sound files with bytes changed, cut, doubled or spliced. It may return or raise UserError; whatever
else it does (another error, more than ``SECONDS``, a crash of the process) is kept in a file, a seed for a test.
"""

import argparse
import json
import pickle
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from edge_sampler.models import checkpoint
from edge_sampler.models.architecture import build
from edge_sampler.models.shipped import plan_file
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import read_object
from edge_sampler.runtime.manifest import MANIFEST, facts_of, write_manifest
from edge_sampler.runtime.plan import Plan

DATA = Path(__file__).parent / "data"
SECONDS = 20
MOST_BYTES = 6_000_000_000  # of address space, PyTorch's own 3 GB included
INTERESTING = (b"\x00", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"1e999", b"NaN", b"-1", b'""', b"[" * 200, b"..")
ARCHITECTURE = {
    "precond": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 8, "img_channels": 1, "model_channels": 8,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "label_dim": 3, "dropout": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A reader, the name of the file that it reads, and sound contents."""

    read: Callable[[Path], object]
    file: str
    sound: tuple[bytes, ...]


def build_of(path: Path) -> object:
    return build(read_object(path), "fuzzed")


def open_bundle(path: Path) -> object:
    bundle = Bundle.open(path.parent)
    return [bundle.engines, bundle.inputs, bundle.output, bundle.tolerance(), bundle.random_weights]


def targets(folder: Path) -> dict[str, Target]:
    """By name; ``folder`` is for files that are made on the way."""
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(4)}
    torch.save(tensors, folder / "new.pt")
    torch.save(tensors, folder / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(tensors, folder / "a.safetensors", {"architecture": json.dumps(ARCHITECTURE)})
    snapshots = tuple((DATA / name).read_bytes() for name in ("official-format-tiny.pkl",))
    stored = json.loads((DATA / "manifest.json").read_text())  # of a bundle
    write_manifest(folder / MANIFEST, facts_of(stored), stored["files"])
    manifest = (folder / MANIFEST).read_bytes()
    return {
        "snapshot": Target(checkpoint.read, "a.pkl", (*snapshots, pickle.dumps({"ema": tensors}))),
        "state dict": Target(checkpoint.read, "a.pt", ((folder / "new.pt").read_bytes(),)),
        "old state dict": Target(checkpoint.read, "a.pt", ((folder / "old.pt").read_bytes(),)),
        "safetensors": Target(checkpoint.read, "a.safetensors", ((folder / "a.safetensors").read_bytes(),)),
        "plan": Target(Plan.load, "plan.json", (plan_file("edm-digits", 5).read_bytes(),)),
        "manifest": Target(open_bundle, MANIFEST, (manifest,)),
        "architecture": Target(build_of, "a.json", (json.dumps(ARCHITECTURE).encode(),)),
    }


def changed(random_: random.Random, sound: bytes, other: bytes) -> bytes:
    """``sound`` with one to four changes; the early bytes, where formats say what follows, more often than others."""
    content = bytearray(sound)
    for _ in range(random_.randint(1, 4)):
        reach = random_.choice((64, 1024, len(content)))
        place = random_.randrange(max(1, min(reach, len(content))))
        if reach == 1024 and random_.random() < 0.5:  # where archives say it
            place = max(0, len(content) - 1 - place)
        match random_.randrange(7):
            case 0 if content:
                content[place % len(content)] ^= 1 << random_.randrange(8)
            case 1 if content:
                content[place % len(content)] = random_.randrange(256)
            case 2:
                del content[place:]
            case 3:
                content[place:place] = random_.choice(INTERESTING)
            case 4:
                end = place + random_.randint(1, 64)
                content[place:place] = content[place:end]
            case 5:
                del content[place : place + random_.randint(1, 64)]
            case _:
                start = random_.randrange(max(1, len(other)))
                content[place : place + 16] = other[start : start + 16]
    return bytes(content)


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """The same for a seed, without end."""
    random_ = random.Random(seed)
    while True:
        yield changed(random_, random_.choice(target.sound), random_.choice(target.sound))


def trial(target: Target, content: bytes, folder: Path, seconds: int = SECONDS) -> str | None:
    """What went wrong, in a word; None where the reader returned or raised UserError."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s")

    path = folder / target.file
    path.write_bytes(content)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        target.read(path)
    except UserError as error:
        return "a message of several lines" if "\n" in str(error).strip() else None
    except BaseException as error:  # the alarm's too
        return f"{type(error).__name__}: {error}"[:300]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def run(names: Mapping[str, Target], minutes: float, seed: int, out: Path) -> tuple[int, int]:
    """Tries all in turn; returns how many were tried, and how many of them went wrong, which are kept in ``out``."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    ends, tried, wrong = time.monotonic() + 60 * minutes, 0, 0
    streams = {name: inputs(target, seed) for name, target in names.items()}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < ends:
            for name, target in names.items():
                content = next(streams[name])
                (out / "last").write_bytes(content)  # what is left where the process itself dies
                found = trial(target, content, Path(folder))
                tried += 1
                if found:
                    wrong += 1
                    kept = out / f"{name.replace(' ', '-')}-{tried}"
                    kept.write_bytes(content)
                    print(f"{kept}: {found}", flush=True)
    (out / "last").unlink(missing_ok=True)
    return tried, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("crashes"))
    parser.add_argument("--only", help="one reader's name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        chosen = {arguments.only: known[arguments.only]} if arguments.only else known
        tried, wrong = run(chosen, arguments.minutes, arguments.seed, arguments.out)
    print(f"{tried:,} inputs, {wrong} went wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
