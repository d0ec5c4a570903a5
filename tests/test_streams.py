"""Standard streams of command lines: full, closed, read by nobody any more, or of few characters."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sampler.runtime import command_line
from edge_sampler.runtime.command_line import Forgiving, outcome
from edge_sampler.runtime.errors import UserError
from tests.test_command_line_parts import raises


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(errno.ENOSPC, "full")], ids=["pipe", "full"])
@pytest.mark.parametrize("ended", [0, SystemExit(0)], ids=repr)
def test_what_the_output_still_holds_is_written_in_time(
    error: OSError, ended: int | SystemExit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the last flush, of Python itself, would fail with a traceback: of --help too, which exits."""
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(flush=raises(error)))
    expected = (141, "") if isinstance(error, BrokenPipeError) else (2, "error: cannot write the output: full")
    assert outcome(raises(ended) if isinstance(ended, SystemExit) else lambda: ended) == expected
    assert outcome(raises(UserError("wrong"))) == (2, "error: wrong")


def test_standard_error_loses_what_cannot_be_written() -> None:
    wrote = io.StringIO()
    stream = Forgiving(wrote)
    assert stream.write("a line") == 6
    stream.flush()
    assert wrote.getvalue() == "a line"
    fails = raises(OSError(errno.ENOSPC, "full"))
    full = SimpleNamespace(write=lambda text: fails(), flush=fails, name="full")
    print("lost", file=Forgiving(full), flush=True)  # type: ignore[arg-type]
    assert Forgiving(full).name == "full"  # type: ignore[arg-type]


WRITES = """
import sys
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
def main():
    print("made")
    print("note", file=sys.stderr)
    if sys.argv[1] == "wrong":
        raise UserError("wrong")
    if sys.argv[1] == "help":
        Parser().parse_args(["--help"])
    return 3
run_command(main)
"""


@pytest.mark.parametrize(
    ("gone", "asked", "status", "told"),
    [
        ("stdout", "help", 141, "note\n"),
        ("stdout", "work", 141, "note\n"),
        ("stdout", "wrong", 2, "note\nerror: wrong\n"),
        ("stderr", "work", 3, "made\n"),
        ("stderr", "wrong", 2, "made\n"),
    ],
)
def test_a_reader_that_has_gone_is_no_fault(gone: str, asked: str, status: int, told: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    out, err = (writer if name == gone else subprocess.PIPE for name in ("stdout", "stderr"))
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    ended = subprocess.run([sys.executable, "-c", WRITES, asked], text=True, env=buffered, stdout=out, stderr=err)
    os.close(writer)
    assert (ended.returncode, ended.stderr if gone == "stdout" else ended.stdout) == (status, told)


def test_streams_that_are_closed_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    command_line.open_streams()
    streams = [sys.stdin, sys.stdout, sys.stderr]
    assert [(stream.name, stream.mode) for stream in streams] == [(os.devnull, "r"), *[(os.devnull, "w")] * 2]
    monkeypatch.undo()
    for stream in streams:
        stream.close()
    monkeypatch.setattr(sys, "stderr", sys.stderr)  # which comes back
    narrow = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    command_line.open_streams()
    print("γ")
    narrow.flush()
    assert narrow.buffer.getvalue().startswith(b"?")
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stdout", kept)
    command_line.open_streams()
    assert sys.stdout is kept


def test_a_stream_that_cannot_write_gamma_gets_a_question_mark() -> None:
    program = "from edge_sampler.runtime.command_line import run_command; run_command(lambda: print('γ = 1'))"
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, [b"?", b"=", b"1"])
