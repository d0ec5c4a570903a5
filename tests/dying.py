"""Writers that die at every step: python -m tests.dying FOLDER WRITER HOW, on systems that can fork.

Each call that changes a disk is a step. HOW is "killed" (the process is gone) or "interrupted" (as by Ctrl-C), and
ends with "-without-exchange" for systems that cannot exchange two folders at once. After each death what was to be
written must be old or new, and whole; the next writer must leave nothing but its own. Prints how many steps there were.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime import output
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.generate.job import Shard, write_record
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.output import sweep, writable
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.signature import SIGNATURE
from edge_sampler.runtime.verified import describe_files
from tests.bundles import facts

CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
ENGINE = Engine("engines/tensorrt-fp32-sm86-b1.engine", "tensorrt", "10.0", ("sm86",), "fp32", Batch(1, 1, 1))
INPUTS = {"shape": [1, 2, 2], "conditions": {}, "axes": {}}
PLAN = Plan("ddim", (1.0,), ((1.0,), (0.5, 0.5)))
KEY = "key"  # of the bundles that are signed, beside their places
HOWS = [f"{how}{where}" for how in ("killed", "interrupted") for where in ("", "-without-exchange")]


def sample(place: Path, word: str) -> None:
    with writable(place / "a.npz", force=True) as path:
        np.savez(path, images=np.full(3, ord(word[0])))


def plan(place: Path, word: str) -> None:
    with writable(place / "plan.json", force=True) as path:
        Plan(word, PLAN.sigmas, PLAN.table).save(path)


def bundle(place: Path, word: str) -> None:
    with writable(place / "b", True, "bundle") as folder:
        folder.mkdir()
        PLAN.save(folder / "plan.json")
        (folder / "sampler.onnx").write_text(word)
        told = facts(INPUTS, {"name": "images", "shape": [1, 2, 2], "units": ""}) | {"plan_sha256": PLAN.sha256}
        write_manifest(folder / MANIFEST, told, describe_files(folder))


def engine(place: Path, word: str, sign: Callable[[Path], None] | None = None) -> None:
    """An engine, built again where there is one; and a graph that is new."""
    from edge_sampler.export import extend

    if not (place / "b").exists():
        bundle(place, "a graph")
    there = Bundle.open(place / "b")

    class Built:
        engine_bytes, log, layers = word.encode(), [word], 1

    for name, fake in (("build", lambda *_: Built()), ("read_graph", lambda *_: None)):
        setattr(extend, name, fake)
    with extend.extended(there, sign) as (folder, told):
        extend.add_engine(there, folder, told, ENGINE)


def signed(place: Path, word: str) -> None:
    """The same, of a bundle that is signed: it is at every moment."""

    def sign(folder: Path) -> None:
        with writable(folder / SIGNATURE, force=True, kind="part") as path:
            path.write_bytes(bytes(pair().secret_key.sign((folder / MANIFEST).read_bytes())))

    (place.parent / KEY).write_bytes(bytes(pair().public_key))
    engine(place, word, sign)


@cache
def pair() -> Any:
    from minisign import KeyPair

    return KeyPair.generate()


def record(place: Path, word: str) -> None:
    sweep(place)  # as `generate` does before the first
    write_record(place, {"word": word}, {"s": Shard("s", "", 1, 0, 1, word)}, complete=True)


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "sample": sample, "plan": plan, "bundle": bundle, "engine": engine, "signed": signed, "record": record
}  # fmt: skip


def content(place: Path) -> dict[str, bytes]:
    """Whatever readers find. Raises where a bundle's files are not as its manifest says."""
    if (place / "b").is_dir() or not list(place.glob("[!.]*")):
        try:
            key = place.parent / KEY
            found = Bundle.open(place / "b", key if key.exists() else None)
        except Exception:
            if list(place.iterdir()):
                raise
            return {}
        told = {name.replace(".2.", "."): found.read(name) for name in found.manifest["files"]}
        return {
            name: read for name, read in told.items() if name != "report.html"
        }  # between two manifests none lists it
    return {path.name: path.read_bytes() for path in place.glob("[!.]*")}


@dataclass
class Death:
    """Comes before the step of that number."""

    step: int
    killed: bool
    place: str

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES or self.step < 0:
            return
        path = os.fspath(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else ""
        flags = arguments[2] if event == "open" else os.O_WRONLY
        ours = str(path).startswith(self.place) or not os.path.isabs(path)
        if not ours or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        self.step -= 1
        if self.step < 0:
            if self.killed:
                os._exit(9)
            raise KeyboardInterrupt


def dies(writer: Callable[[Path, str], None], place: Path, step: int, killed: bool) -> bool:
    """Whether it died; False: it had fewer steps and came to its end."""
    child = os.fork()
    if not child:
        status = 3
        try:
            sys.addaudithook(Death(step, killed, str(place)))
            writer(place, "new")
            status = 0
        except KeyboardInterrupt:
            status = 9
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    return status == 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("writer", choices=WRITERS)
    parser.add_argument("how", choices=HOWS)
    arguments = parser.parse_args()
    base, name, how = arguments.folder.resolve(), arguments.writer, arguments.how
    writer = WRITERS[name]
    if how.endswith("-without-exchange"):
        output.exchanged = lambda *_: False
    old, new = base / "old", base / "new"
    for place, word in ((old, "old"), (new, "old"), (new, "new")):
        place.mkdir(exist_ok=True)
        writer(place, word)
    names = {path.name for path in new.rglob("*")}
    states, step = [content(old), content(new)], 0
    assert states[0] != states[1]
    while True:
        place = base / str(step)
        shutil.copytree(old, place)
        ended = not dies(writer, place, step, how.startswith("killed"))
        assert content(place) in states, (step, content(place))
        writer(place, "new")
        assert content(place) == states[1], step
        left = {path.name.replace(".2.", ".") for path in place.rglob("*")} ^ {n.replace(".2.", ".") for n in names}
        assert not left, (step, left)
        shutil.rmtree(place)
        if ended:
            break
        step += 1
    print(step)


if __name__ == "__main__":
    main()
