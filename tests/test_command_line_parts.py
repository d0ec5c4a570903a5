"""What all command lines share, each part by itself, in this process."""

import argparse
import errno
import os
import runpy
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.command_line import (
    MOST_NUMBERS,
    Parser,
    add_verify_key,
    conditions_of,
    given,
    leave_name,
    outcome,
    run_command,
    signals,
    whole_numbers,
)
from edge_sampler.runtime.errors import BoundError, UserError

ROOT = Path(__file__).parent.parent


def raises(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


def test_a_complaint_is_an_error_of_the_users() -> None:
    parser = Parser("p")
    parser.add_argument("--seeds", type=whole_numbers)
    add_verify_key(parser)
    with pytest.raises(UserError, match=r"^argument --seeds: 'x' is not a list of whole numbers.* \(see p --help\)$"):
        parser.parse_args(["--seeds", "x"])
    for numbers in ("-1", "-1,0", "-1,-2", "-3-5"):
        assert parser.parse_args(["--seeds", numbers]).seeds == whole_numbers(numbers)
    parser.add_argument("--level")
    for value in ("-.5", "-1e-3", "-1.5,2", "-1:2:3"):
        assert parser.parse_args(["--level", value]).level == value
    with pytest.raises(UserError, match="expected one argument"):
        parser.parse_args(["--level", "-x"])
    assert parser.parse_args(["--verify-key", "a.pub"]).verify_key == Path("a.pub")
    assert parser.parse_args([]).verify_key is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0-3,7,-1", [0, 1, 2, 3, 7, -1]), (" 5 , 2-2", [5, 2]), ("-1-1", [-1, 0, 1]), ("12-13", [12, 13])],
)
def test_lists_of_numbers(text: str, numbers: list[int]) -> None:
    assert whole_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "1,", "3-2", "1.5", "a", "1--2", "1-2-3", "0x1"])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a list of whole numbers such as 0-63 or 1,5,9"):
        whole_numbers(text)


def test_no_more_numbers_than_anyone_means() -> None:
    assert len(whole_numbers(f"1-{MOST_NUMBERS}")) == MOST_NUMBERS
    for more in (f"0-{MOST_NUMBERS}", f"5,1-{MOST_NUMBERS}", "0-99999999999999999999"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"names more than {MOST_NUMBERS} numbers"):
            whole_numbers(more)


def test_conditions_are_numbers_texts_and_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", one=np.arange(3), two=np.zeros(1))
    np.save(tmp_path / "b.npy", np.eye(2))
    told = ["n=3", "m=1,-2.5", f"{tmp_path}/a.npz", f"x={tmp_path}/b.npy", "prompt=a = b", f"other={tmp_path}/b.npy"]
    found = given(told, ["prompt", "other"])
    assert list(found) == ["n", "m", "one", "two", "x", "prompt", "other"]
    assert (found["n"], found["m"], found["prompt"]) == (3, [1, -2.5], "a = b")
    assert found["one"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(found["x"], np.eye(2))
    np.testing.assert_array_equal(found["other"], np.eye(2))
    assert given(["prompt=picture.npz"], ["prompt"]) == {"prompt": "picture.npz"}


@pytest.mark.parametrize(
    ("texts", "name"),
    [(["n=3", "n=4"], "n"), (["a.npz", "x=1"], "x"), (["x=1", "a.npz"], "x"), (["prompt=a", "prompt=b"], "prompt")],
)
def test_a_condition_is_given_once(
    texts: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.eye(2), y=np.eye(2))
    with pytest.raises(UserError, match=f"^{name} is given twice: give it once"):
        given(texts, ["prompt"])
    labels = argparse.Namespace(condition=["class_labels=3"], class_labels=[3])
    with pytest.raises(UserError, match=r"class_labels is given twice, by --condition and by --class-labels"):
        conditions_of(labels, {})
    labels.class_labels = None
    assert conditions_of(labels, {}) == {"class_labels": 3}


@pytest.mark.parametrize("word", ["--a=--", "--a-b=--"])
def test_a_dash_is_no_value(word: str) -> None:
    parser = Parser()
    parser.add_argument("--a")
    parser.add_argument("--a-b")
    with pytest.raises(UserError, match=f"{word}: -- is no value"):
        parser.parse_args([word])
    assert parser.parse_args(["--a=prompt=--"]).a == "prompt=--"


@pytest.mark.parametrize(
    "text",
    ["n", "3", "n=a", "n=", "n=1,", "n=" + "[" * 5000, "n=NaN", "n=1,inf", "n=a.npz", "a.npy"],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(UserError, match=r"not NAME=NUMBERS, NAME=FILE\.npy or FILE\.npz \(") as refused:
        given([text])
    assert str(refused.value).startswith(f"{text}: ")
    assert ("is no finite number" in str(refused.value)) == text.startswith("n=")
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (UserError("no\nsuch   thing"), 2, "error: no such thing"),
        (UserError("a\x1b[2J" + "b" * 10**6), 2, "error: a\\x1b[2J" + "b" * 995 + " … " + "b" * 1000),
        (BoundError("too far off"), 1, "error: too far off"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 TB"),
            2,
            "error: there is not enough memory (DefaultCPUAllocator: not enough memory: you tried to allocate 8 TB); "
            "ask for less at once",
        ),
        (MemoryError("8 TB"), 2, "error: there is not enough memory (8 TB); ask for less at once"),
        (OSError(errno.ENOSPC, "full", "a"), 2, "error: cannot write a: full"),
        (OSError(errno.ENOSPC, "full", "source", None, "target"), 2, "error: cannot write target: full"),
        (OSError(errno.EBADF, "not open"), 2, "error: cannot write the output: not open"),
        (OSError(errno.EROFS, "read-only", b"a"), 2, "error: cannot write b'a': read-only"),
        (
            FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
            2,
            "error: no temporary folder can be written to: make room, or name another one in TMPDIR",
        ),
        (OSError(errno.ELOOP, "a loop", "absent"), 2, "error: cannot open absent: a loop"),
        (OSError(errno.ENAMETOOLONG, "too long", "a" * 999), 2, f"error: cannot open {'a' * 999}: too long"),
    ],
    ids=repr,
)
def test_how_a_command_ends(error: BaseException, status: int, told: str) -> None:
    assert outcome(raises(error)) == (status, told)


@pytest.mark.parametrize("error", [KeyError("ours"), OSError(errno.ENOENT, "none", "a"), OSError("?")], ids=repr)
def test_a_fault_of_ours_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)):
        outcome(raises(error))


def test_a_current_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    told = "error: the current folder is not there any more: change to one that is"
    assert outcome(lambda: len(os.path.abspath("a"))) == (2, told)


def test_a_status_is_the_mains() -> None:
    assert outcome(lambda: None) == outcome(lambda: 0) == (0, "")
    assert outcome(lambda: 3) == (3, "")
    status, told = outcome(raises(ModuleNotFoundError(name="torch")))
    assert status == 2
    assert told.startswith("error: torch is not installed; calibration and export need: pip install")
    assert "[cpu]" in told.partition("engines of finished bundles")[0]
    assert "[engine]" in told.partition("engines of finished bundles")[2]


@pytest.fixture
def handlers() -> Any:
    """The process's own come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    interrupt.forget()


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_it_as_a_shell_has_it() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, raised in ((signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)):
        with signals():  # what came to the command before is forgotten
            assert not interrupt.status()
            interrupt.check()
            with pytest.raises(raised):
                signal.raise_signal(number)
            assert interrupt.status() == 128 + number
            with pytest.raises(raised):  # before what was made takes its place
                interrupt.check()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("then", [None, RuntimeError("of a library"), UserError("another")], ids=repr)
def test_an_interruption_is_told_whatever_was_made_of_it(
    then: Exception | None, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        with suppress(KeyboardInterrupt, SystemExit):
            interrupt.handle(number)
        if then:
            raise then
        return 0

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err == ("interrupted\n" if number == signal.SIGINT else "")


@pytest.mark.usefixtures("handlers")
def test_a_command_that_ends_well_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    for main, status in ((lambda: None, 0), (lambda: 1, 1)):
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("parent", "kept"), [("models", False), ("runtime", False), ("tests", True), (None, True)])
def test_a_users_own_package_may_have_a_rooms_name(
    parent: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = None if parent is None else SimpleNamespace(parent=parent)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    name = parent or "models"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    leave_name()
    assert (name in sys.modules) == kept
    leave_name()


COMMANDS = [path for path in (ROOT / "runtime").rglob("*.py") if "\n    run_command(main)" in path.read_text("utf-8")]


@pytest.mark.parametrize("file", COMMANDS, ids=[path.name for path in COMMANDS])
@pytest.mark.usefixtures("handlers")
def test_a_file_that_may_be_run_is_a_command(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And does nothing where it is imported."""
    monkeypatch.setattr(sys, "argv", ["file", "--help"])
    assert callable(runpy.run_path(str(file))["main"])
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    assert not ended.value.code
    assert capsys.readouterr().out.startswith("usage: ")
