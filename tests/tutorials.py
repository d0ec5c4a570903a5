"""Runs a tutorial as its reader would: python -m tests.tutorials docs/tutorials/NAME.md [--write]

Its blocks of ``sh`` and ``python`` run from top to bottom in one new folder and one shell. A block that begins with
``# NAME.py`` is saved under that name, and one that begins with ``# needs`` (a GPU, a download) or ``# takes``
(minutes) is left out. A block of ``text`` is what the block before it prints; if it begins with ``…``, as many of the
last lines as it has. A picture is a file that some block makes. What differs is said; ``--write`` puts it in.
``python`` is that of ``tests/warm.py``: each command is a process of its own.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests import warm

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[[^]]*\]\(([\w-]+\.png)\)")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
OF_THE_MACHINE = re.compile(  # versions, times, and how a control loop went
    r"\d+(?:\.\d+){2,}|[\d.]+(?= m?s\b)|(?<=holds )[\d.]+|\d+ of \d+(?= (?:periods|episodes))"
)
COUNTED = 10_000  # whole numbers below it are the same everywhere
ROUNDING, NEAR = 1e-4, 0.05  # numbers below the first are sums in another order; relative difference of the others
LEVELS = 2.0  # of 255, RMS: how far apart pictures of two machines may be


def run(code: str, language: str, folder: Path) -> str:
    """What a block prints, in the shell that the blocks before it left. Raises AssertionError where it fails."""
    named = re.match(r"# ([\w-]+\.py)\n", code)
    if language == "python" and named:
        (folder / named[1]).write_text(code, encoding="utf-8")
        return ""
    programs = (warm.python(), sys.executable)  # beside the latter is polygraphy
    environment = os.environ | {
        "PATH": os.pathsep.join([*(str(Path(one).parent) for one in programs), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "EDGE_SAMPLER_CACHE": str(folder / ".cache"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "80",
        "SHELL_STATE": str(folder / ".shell"),
    }
    lines = code if language == "sh" else f"python -c {shlex.quote(code)}\n"
    script = f'. "$SHELL_STATE"\n{lines}{{ export -p; echo "cd \'$PWD\'"; }} > "$SHELL_STATE"'
    done = subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True)
    printed = done.stdout.decode()
    assert not done.returncode, f"status {done.returncode} of\n{code}\n{printed}{done.stderr.decode()}"
    return "".join(f"{line.rstrip()}\n" for line in printed.splitlines())


def cut(printed: str, shown: str) -> str:
    """As much of it as the page shows."""
    kept = printed.splitlines(keepends=True)[1 - shown.count("\n") :]
    return "…\n" + "".join(kept) if shown.startswith("…") else printed


def same(one: str, other: str) -> bool:
    """Whether two outputs agree: words and counts to the letter, other numbers nearly."""
    texts = [OF_THE_MACHINE.sub("…", text) for text in (one, other)]
    words = [re.sub(r"[\s─━]+", " ", NUMBER.sub("0", text)) for text in texts]
    if words[0] != words[1]:
        return False
    return all(near(*pair) for pair in zip(*(NUMBER.findall(text) for text in texts), strict=True))


def near(one: str, other: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (one, other))
    if one.isdigit() and a < COUNTED:
        return a == b
    return max(a, b) < ROUNDING or abs(a - b) <= NEAR * max(a, b)


def alike(made: Path, kept: Path) -> bool:
    """Whether two pictures show the same."""
    if not kept.is_file():
        return False
    one, other = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (made, kept))
    return one.shape == other.shape and float(np.sqrt(np.square(one - other).mean())) < LEVELS


def differences(page: Path, folder: Path, write: bool = False) -> list[str]:
    """What of ``page`` is not so today; ``write`` makes it so. ``folder`` is an empty one to run it in."""
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".shell").touch()
    found: list[str] = []

    def fresh(block: re.Match[str]) -> str:
        language, code, shown = block.groups()
        printed = "" if code.startswith(("# needs ", "# takes ")) else run(code, language, folder)
        if shown is None or same(cut(printed, shown), shown):
            return block[0]
        found.append(f"{page}: after\n{code}it says\n{shown}and now it prints\n{cut(printed, shown)}")
        return block[0].replace(f"```text\n{shown}", f"```text\n{cut(printed, shown)}")

    text = BLOCK.sub(fresh, page.read_text("utf-8"))
    for name in PICTURE.findall(text):
        assert (folder / name).is_file(), f"{page}: no block makes {name}"
        if not alike(folder / name, page.parent / name):
            found.append(f"{page}: {name} is another picture now")
            if write:
                (page.parent / name).write_bytes((folder / name).read_bytes())
    if write:
        page.write_text(text, encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("\n".join(differences(arguments.page, Path(name), arguments.write)) or "it is as it says")


if __name__ == "__main__":
    main()
