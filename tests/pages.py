"""The commands that our pages give: which there are, what a page says of running them, and how they are run here.

A mark says what a command needs or takes, and leaves it out of the run: ``# needs a GPU`` or ``# takes hours`` behind
it or at the head of its block; in prose and tables such words in its paragraph or row; or the sentence of a page that
its commands do so.
"""

import io
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest

from edge_sampler.models.python_file import neighbours_first
from edge_sampler.runtime.command_line import COMMANDS, run_command

ROOT = Path(__file__).parent.parent
MARK = re.compile(r"\b(?:needs? (?:a GPU|a download|lerobot)|takes? (?:some )?(?:minutes|hours))\b")
PAGE_MARK = re.compile(rf"[Cc]ommands (?:of|on) this page ({MARK.pattern})")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SAVED = re.compile(r"^```python\n(# ([\w-]+\.py)\n.*?)^```", re.MULTILINE | re.DOTALL)
ROOMS = "|".join((*COMMANDS, "tests"))
OURS = re.compile(rf"\bpython3? (?:-m ((?:edge_sampler\.)?(?:{ROOMS})\b.*)|(examples/.*))|^edge-sampler (.*)")
CUT = re.compile(r"&&|\||;|\d?>")
PATIENCE = 60  # seconds until a server has to be ready


@dataclass(frozen=True)
class Command:
    """One of ours: its words, the module or file first; why it is not run here, "" for none; whether prose names it."""

    text: str
    mark: str = ""
    in_prose: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    @property
    def is_name(self) -> bool:
        """Whether it is spoken of, as ``runtime sample`` is, and not given to be typed."""
        return self.in_prose and bool(re.fullmatch(r"[a-z._]+( [a-z]+)?", self.text))


def commands(page: Path) -> Iterator[Command]:
    """Of a page, or of a program's docstring, in their order; without those that it cuts short by ``…``."""
    text = page.read_text("utf-8")
    if page.suffix == ".py":
        yield from of_block(
            "\n".join(re.findall(r"^ *(python.*)", text.partition('"""')[2].partition('"""')[0], re.MULTILINE))
        )
        return
    whole = PAGE_MARK.search(" ".join(text.split()))
    for found in of_markdown(text):
        yield Command(found.text, found.mark or (whole[1] if whole else ""), found.in_prose)


def of_markdown(text: str) -> Iterator[Command]:
    end = 0
    for block in FENCE.finditer(text):
        yield from of_prose(text[end : block.start()])
        yield from of_block(block[2])
        end = block.end()
    yield from of_prose(text[end:])


def of_block(text: str) -> Iterator[Command]:
    head = re.match(r"# (?:needs|takes) .*", text)
    for line in text.replace("\\\n", " ").splitlines():
        code, _, comment = line.strip("# ").partition(" # ")
        mark = MARK.search(comment) or (MARK.search(head[0]) if head else None)
        yield from (Command(found, mark[0] if mark else "") for found in ours(code))


def of_prose(text: str) -> Iterator[Command]:
    for paragraph in re.split(r"\n\s*\n|\n(?=\||- )", text):
        mark = MARK.search(" ".join(paragraph.split()))
        for span in re.findall(r"`([^`]+)`", paragraph):
            yield from (Command(found, mark[0] if mark else "", True) for found in ours(span.replace("\n", " ")))


def ours(text: str) -> Iterator[str]:
    for part in CUT.split(text):
        found = OURS.search(part.strip())
        if found and "…" not in part:
            yield " ".join((found[1] or found[2] or found[3]).split())


def main_of(name: str) -> Callable[[], int | None]:
    """What runs: of a module, ``tests.fuzz``, or of an example beside us, ``examples/gate.py``."""
    if name.endswith(".py"):
        path = Path(name).absolute()
        spec = spec_from_file_location(f"example_{path.stem}", path)
        assert spec
        assert spec.loader
        module = module_from_spec(spec)
        with neighbours_first(path.parent):
            spec.loader.exec_module(module)
    elif name.startswith("tests."):
        module = import_module(name)
    else:
        name = name.removeprefix("edge_sampler.")
        module = import_module(f"edge_sampler.{name}" if "." in name else f"edge_sampler.{name}.__main__")
    main: Callable[[], int | None] = module.main
    return main


def run(words: Sequence[str]) -> tuple[int, str]:
    """The status of a command in this process, and what it says."""
    said = io.StringIO()
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", [*words])
        with pytest.raises(SystemExit) as ended:
            run_command(main_of(words[0]))
    for number, handler in signals.items():
        signal.signal(number, handler)
    return int(ended.value.code or 0), said.getvalue()


def serve(words: Sequence[str], requests: Sequence[str]) -> tuple[int, str]:
    """The same of a server, on a free port: it answers the page's ``curl`` commands, and then SIGTERM ends it."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = str(found.getsockname()[1])
    wrong = []

    def ask() -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                break
            time.sleep(0.02)
        else:
            return  # it ended by itself, and says why
        for request in requests:
            curl = request.replace("8000", port).replace("curl ", "curl --fail --silent --show-error ", 1)
            done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True)
            wrong.extend([f"{request}: {done.stderr}"] if done.returncode else [])
        os.kill(os.getpid(), signal.SIGTERM)

    asking = Thread(target=ask, daemon=True)
    asking.start()
    status, said = run([*words, "--port", port])
    return status or len(wrong), "\n".join([said, *wrong])


def failures(
    page: Path, wanted: Callable[[list[str]], list[str]], status: Mapping[str, int], known: set[str]
) -> list[str]:
    """The commands of ``page`` that fail here, and what they say, run in this folder from top to bottom.

    ``wanted`` puts a reader's words for the page's; ``status`` is what a command ends with where that is not 0. An
    export without ``--out`` is not run if it is ``known``, from a page before: nothing on a page needs it.
    """
    text = page.read_text("utf-8")
    for code, name in SAVED.findall(text):
        Path(name).write_text(code, encoding="utf-8")
    requests = re.findall(r"^curl .*", text.replace("\\\n", " "), re.MULTILINE)
    failed = []
    for command in commands(page):
        if command.mark or command.is_name or command.text in known:
            continue
        known |= (
            {command.text} if command.words[:2] == ["export", "--model"] and "--out" not in command.words else set()
        )
        words = wanted(command.words)
        ended, said = serve(words, requests) if words[:2] == ["runtime", "serve"] else run(words)
        if ended != status.get(" ".join(words[:2]), 0):
            failed.append(f"{page.name}: {command.text}: status {ended}: {said[-500:]}")
    return failed
