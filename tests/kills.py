"""Commands killed at random moments: python -m tests.kills --times 200 --seed 1 FOLDER, on systems that can fork.

Each command writes over what is there. It is a process of its own, which finds the large libraries loaded, so that the
moment falls into its work; it is killed with all that it started. What it was to write must be as it was or new, and
whole. Then the command runs to its end, and nothing may be left but what one that nobody killed leaves, in the system's
temporary folder neither. `tests.dying` is the thorough one: every step, of what writes.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.children import status_within

DIGITS = "export --model edm-digits --plan shipped --check 0 --samples 1 --out {place}/b --force --nfe"
FIT = (
    "calibration --model edm-digits --solver iia-ddim --schedule edm --no-afs --fit-target local --fit-batch 8 "
    "--heldout 4 --reference-steps 24 --out {place}/plan.json"
)
DIFFERS = re.compile(rb'"(seconds|evaluations)": [\d.e+-]+')  # in a fit's report, from run to run
TIMEOUT = 900
IMPORTED = (
    "torch", "onnx", "onnxruntime", "onnxscript", "safetensors.torch", "matplotlib.pyplot", "edge_sampler.console",
    "edge_sampler.export.command", "edge_sampler.export.card", "edge_sampler.export.triton",
    "edge_sampler.calibration.ship", "edge_sampler.runtime.page.command", "edge_sampler.runtime.generate.command",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What is killed, and what is run ``before`` so that something is there; both with places to fill in.

    Args:
        depth: folders down to what is written in one step.
        grows: the folder whose files come one by one.
    """

    words: str
    before: str = ""
    depth: int = 1
    grows: str = "cache"


COMMANDS = {
    "sample": Command(
        "runtime sample {bundle} --seeds 0-255 --out {place}/a.npz --force",
        "runtime sample {bundle} --seeds 0-3 --out {place}/a.npz",
    ),
    "pictures": Command(
        "runtime sample {bundle} --seeds 0-63 --out {place}/a.png --force",
        "runtime sample {bundle} --seeds 0-3 --out {place}/a.png",
    ),
    "export": Command(f"{DIGITS} 4", f"{DIGITS} 3"),
    "fp16": Command("export engine {place}/b --precision fp16 --force", f"{DIGITS} 3"),
    "int8": Command("export engine {place}/b --precision int8 --force", f"{DIGITS} 3"),
    "generate": Command(
        "runtime generate {bundle} --seeds 0-199 --shard 10 --format npz --out {place}/shards", grows="shards"
    ),
    "card": Command(
        "export card {bundle} --out {place}/README.md --force", "export card {other} --out {place}/README.md"
    ),
    "page": Command(
        "runtime page {bundle} --out {place}/site --onnxruntime-web {web} --force",
        "runtime page {other} --out {place}/site --onnxruntime-web {web}",
    ),
    "triton": Command(
        "export triton {bundle} --out {place}/models --name a --force",
        "export triton {other} --out {place}/models --name a",
        depth=2,
    ),
    "fit": Command(f"{FIT} --nfe 3 --force", f"{FIT} --nfe 2"),
    "ship": Command("calibration ship --model edm-digits --nfe 1,2 --out {place}"),
}


def smaller_fits() -> None:
    """Those of `ship` take minutes: here of few noises, and of a coarser fine trajectory."""
    from edge_sampler.calibration import ship
    from edge_sampler.calibration.settings import Settings

    def few(nfe: int, **asked: Any) -> Settings:
        small = {"fit_batch": 8, "heldout": 4, "reference_steps": 24, "schedule": "edm", "solver": "iia-ddim"}
        return Settings(nfe, **asked | small)

    setattr(ship, "Settings", few)  # noqa: B010


def start(words: list[str], place: Path) -> int:
    """The process of a command, which leads a group of its own."""
    child = os.fork()
    if child:
        with suppress(PermissionError, ProcessLookupError):  # it did so itself, or is gone
            os.setpgid(child, child)
        return child
    status: object = 1
    try:
        os.setpgid(0, 0)
        (place.parent / "tmp").mkdir(exist_ok=True)
        os.environ.update(TMPDIR=str(place.parent / "tmp"), EDGE_SAMPLER_CACHE=str(place / "cache"))
        os.chdir(place)
        for number in (1, 2):
            os.dup2(os.open(place.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
        smaller_fits()
        sys.argv = ["edge-sampler", *words]
        import_module("edge_sampler.console").main()
        status = 0
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def killed(words: list[str], place: Path, seconds: float) -> bool:
    """Whether a command was killed after that time, with all that it started; False: it had come to its end."""
    status = status_within(start(words, place), seconds, pause=0.002)
    assert not status, f"{' '.join(words)}: {(place.parent / 'output').read_text()[-2000:]}"
    return status is None


def run(words: str, place: Path) -> float:
    """A command to its end; returns the seconds that it took."""
    started = time.monotonic()
    assert not killed(words.split(), place, TIMEOUT), f"{words}: more than {TIMEOUT} s"
    return time.monotonic() - started


def digest(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha256(DIFFERS.sub(b"", content) if path.suffix == ".json" else content).hexdigest()


def units(place: Path, command: Command) -> dict[str, dict[str, str]]:
    """What readers find: the hashes of files, by what is written in one step. Raises where a bundle is not whole."""
    from edge_sampler.runtime.bundle import Bundle

    found: dict[str, dict[str, str]] = {}
    for path in sorted(place.rglob("*")):
        parts = path.relative_to(place).parts
        if path.is_file() and not any(part.startswith(".") for part in parts) and parts[0] != "b":
            found.setdefault("/".join(parts[: command.depth]), {})[parts[-1]] = digest(path)
    if (place / "b").is_dir():  # whoever reads a bundle asks its manifest what there is
        bundle = Bundle.open(place / "b")
        hashes = {name: digest(bundle.file(name)) for name in bundle.manifest["files"] if name != "report.html"}
        found["b"] = {name.replace(".2.", "."): one for name, one in hashes.items()}
    return found


def names(place: Path) -> set[str]:
    """Of all files and folders, hidden ones too, and of those in the temporary folder."""
    everywhere = [*place.rglob("*"), *(place.parent / "tmp").rglob("*")]
    return {path.relative_to(place.parent).as_posix().replace(".2.", ".") for path in everywhere}


def wrong_in(
    found: Mapping[str, Mapping[str, str]],
    old: Mapping[str, Mapping[str, str]],
    new: Mapping[str, Mapping[str, str]],
    grows: str,
) -> list[str]:
    """What is neither as it was nor new; of a folder that grows, each file alone, but for its record."""
    wrong = [unit for unit in old if unit not in found]
    for unit, files in found.items():
        if unit == grows:
            of = new.get(unit, {})
            wrong += [f"{unit}/{name}" for name, one in files.items() if of.get(name) != one and name != "shards.json"]
        elif files not in (old.get(unit), new.get(unit)):
            wrong.append(unit)
    return wrong


@dataclass
class Tried:
    """A command, where it was run, what was found there before and after, and its usual seconds."""

    name: str
    place: Path
    words: str
    old: dict[str, dict[str, str]]
    new: dict[str, dict[str, str]]
    left: set[str]
    seconds: float

    def once(self, seconds: float) -> tuple[bool, list[str]]:
        """Whether it was killed, and what went wrong."""
        command = COMMANDS[self.name]
        shutil.rmtree(self.place.parent / "tmp", ignore_errors=True)
        shutil.rmtree(self.place)
        shutil.copytree(self.place.with_name("old"), self.place)
        died = killed(self.words.split(), self.place, seconds)
        wrong = wrong_in(units(self.place, command), self.old, self.new, command.grows)
        run(self.words, self.place)
        wrong += wrong_in(units(self.place, command), self.new, self.new, "")
        return died, wrong + [f"left: {name}" for name in sorted(names(self.place) - self.left)]


def prepared(name: str, folder: Path, filled: Mapping[str, Path]) -> Tried:
    """What is there before, and what there is after it in peace; twice, since else nothing could be compared."""
    command, place = COMMANDS[name], folder / name / "place"
    place.mkdir(parents=True)
    words, before = (text.format(place=place, **filled) for text in (command.words, command.before))
    if before:
        run(before, place)
    shutil.rmtree(place / "cache", ignore_errors=True)
    shutil.copytree(place, place.with_name("old"))
    old = units(place, command)
    seconds, new = run(words, place), units(place, command)
    left = names(place)
    tried = Tried(name, place, words, old, new, left, seconds)
    assert old != new, f"{name}: nothing is written"
    died, wrong = tried.once(TIMEOUT)
    assert not died, f"{name}: {wrong}"
    assert not wrong, f"{name}: {wrong}"
    return tried


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", action="append", choices=COMMANDS, help="a command's name; again for each")
    arguments = parser.parse_args()
    for name in IMPORTED:
        import_module(name)
    from edge_sampler.runtime.page.folder import ONNX_RUNTIME
    from tests.runtime.test_page import package

    folder = arguments.folder.resolve()
    folder.mkdir(parents=True)
    filled = {
        "web": package(folder / "web", ONNX_RUNTIME)[0],
        "bundle": folder / "5" / "b",
        "other": folder / "3" / "b",
    }
    for nfe in ("5", "3"):
        (folder / nfe).mkdir()
        run(f"{DIGITS} {nfe}".format(place=folder / nfe), folder / nfe)
    tried = [prepared(name, folder, filled) for name in arguments.only or COMMANDS]
    for one in tried:
        print(f"{one.name:<12}{one.seconds:6.1f} s", flush=True)
    chance, deaths, failures, number = random.Random(arguments.seed), 0, 0, 0
    with suppress(KeyboardInterrupt):  # then it says what it has tried
        while number < arguments.times:
            one = tried[number % len(tried)]
            moment = chance.uniform(0, one.seconds)
            died, wrong = one.once(moment)
            number, deaths, failures = number + 1, deaths + died, failures + bool(wrong)
            if wrong:
                print(f"{one.name} killed after {moment:.2f} of {one.seconds:.2f} s: {', '.join(wrong)}", flush=True)
    print(f"{deaths} deaths, {number - deaths} came to their end before; {failures} went wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
