"""Writes that take their place whole, step by step; ``tests/test_dying.py`` kills whole writers."""

import ctypes
import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from edge_sampler.runtime import interrupt, output
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.lock import NoLocksError, release, take
from edge_sampler.runtime.output import (
    LOCK,
    NEW,
    OLD,
    _hidden,
    check_writable,
    exchanged,
    put,
    restore,
    sweep,
    temporary,
    writable,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs locks that a process can meet itself at")


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftover(folder: Path, name: str, number: str = "0123abcd") -> Path:
    made = folder / f".{name}.{number}.new"
    made.mkdir()
    (made / "part").write_text("half")
    return made


def write(path: Path, text: str, force: bool = False) -> None:
    with writable(path, force) as new:
        assert new.name == path.name
        assert new.parent.parent.parent == path.parent
        new.write_text(text)


def test_what_is_written_is_there_afterwards_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "in" / "deep" / "a.txt"
    write(path, "one")
    with pytest.raises(UserError, match=r"a\.txt exists; choose another place, or add --force"):
        write(path, "two")
    assert path.read_text() == "one"
    write(path, "two", force=True)
    assert path.read_text() == "two"
    assert listed(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_told_with_what_was_to_be_written(error: int, tmp_path: Path) -> None:
    """A write's error names no file."""
    for named, told in ((None, str(tmp_path / "a.txt")), ("other", "other")):
        with pytest.raises(OSError) as raised:  # noqa: PT011
            with writable(tmp_path / "a.txt"):
                raise OSError(error, "full", named)
        assert raised.value.filename == told
    with pytest.raises(OSError) as raised:  # noqa: PT011
        with writable(tmp_path / "a.txt"):
            raise OSError(errno.EPIPE, "of a pipe")
    assert raised.value.filename is None


def test_a_file_may_lie_as_deep_as_the_system_allows(tmp_path: Path) -> None:
    """Deeper than functions may call themselves; all its folders go again."""
    check_writable(tmp_path / "/".join("x" * 1000) / "a.txt", force=False)
    assert not listed(tmp_path)


@pytest.mark.parametrize("name", ["a" * 241, "b" * 255, "γ" * 127])
def test_a_name_may_be_as_long_as_the_system_allows(name: str, tmp_path: Path) -> None:
    """A dead writer of another long name has left what only its own next writer may remove."""
    left = tmp_path / f".{_hidden(name[:-1] + 'c')}.01234567.new"
    own = tmp_path / f".{_hidden(name)}.01234567.new"
    left.mkdir()
    own.mkdir()
    write(tmp_path / name, "one")
    assert (tmp_path / name).read_text() == "one"
    assert listed(tmp_path) == sorted([left.name, name])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_was_there_stays_where_the_writer_fails(error: type[BaseException], tmp_path: Path) -> None:
    write(tmp_path / "a", "one")

    def fails() -> None:
        with writable(tmp_path / "a", force=True) as new:
            new.write_text("half")
            raise error

    with pytest.raises(error):
        fails()
    assert (tmp_path / "a").read_text() == "one"
    assert listed(tmp_path) == ["a"]


def test_an_interruption_that_the_work_swallowed_still_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heard() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupt, "check", heard)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", "one")
    assert listed(tmp_path) == []


def test_what_another_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def late(force: bool) -> None:
        with writable(tmp_path / "a", force) as new:
            new.write_text("mine")
            (tmp_path / "a").write_text("another's")

    with pytest.raises(UserError, match="was made meanwhile, by another process"):
        late(False)
    assert (tmp_path / "a").read_text() == "another's"
    late(True)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize("force", [False, True])
def test_nothing_half_written_stays(force: bool, tmp_path: Path) -> None:
    target, old = tmp_path / "bundle", '{"manifest_sha256": ""}'
    if force:
        target.mkdir()
        (target / "manifest.json").write_text(old)

    def fill(folder: Path) -> None:
        folder.mkdir()
        (folder / "manifest.json").write_text("new")
        raise OSError(28, "No space left on device", str(folder))

    with pytest.raises(OSError, match="No space"), writable(target, force, "bundle") as path:
        fill(path)
    assert [path.name for path in tmp_path.iterdir()] == (["bundle"] if force else [])
    if force:
        assert (target / "manifest.json").read_text() == old


def test_a_writer_can_write_whatever_umask_there_is(tmp_path: Path) -> None:
    before = os.umask(0o777)
    try:
        with writable(tmp_path / "a") as new:
            modes = [folder.stat().st_mode & 0o777 for folder in new.parents[:2]]
            new.touch()
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0


def test_folders_that_were_made_for_nothing_go(tmp_path: Path) -> None:
    place = tmp_path / "in" / "deep" / "a"
    check_writable(place, False)
    with pytest.raises(ValueError, match="half"), writable(place):
        raise ValueError("half")
    with pytest.raises(UserError, match="File name too long"):
        check_writable(tmp_path / "in" / ("a" * 300) / "b", False)
    assert listed(tmp_path) == []
    with writable(place) as new:
        new.touch()
        (tmp_path / "in" / "another").touch()
    assert listed(tmp_path / "in") == ["another", "deep"]
    assert listed(tmp_path / "in" / "deep") == ["a"]


def test_a_folder_that_another_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both made it, and the other needs it no more."""
    mkdir, removed = Path.mkdir, list[Path]()

    def meanwhile(self: Path, *arguments: Any, **options: Any) -> None:
        if self.name == "in" and len(removed) < 3:
            removed.append(self)
            return
        mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", meanwhile)
    write(tmp_path / "in" / "a", "one")
    assert len(removed) == 3
    assert (tmp_path / "in" / "a").read_text() == "one"


def test_of_two_that_write_one_file_the_second_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers have the same process id."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    target = tmp_path / "plan.json"

    def write_both() -> None:
        with writable(target) as late:
            late.write_text("late")
            with writable(target) as early:
                early.write_text("early")

    with pytest.raises(UserError, match="made meanwhile"):
        write_both()
    assert target.read_text() == "early"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*file: (Not a directory|File exists)"):
        check_writable(tmp_path / "file" / "a", False)
    check_writable(tmp_path / "a", False)
    assert listed(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["", "a"])
def test_leftovers_of_the_dead_go(name: str, tmp_path: Path) -> None:
    for other in ("a", "b", "a.b"):
        leftover(tmp_path, other)
    leftover(tmp_path, "a", "ffffffff")
    kept = [".a.0123abc.new", ".a.0123abcg.new", ".a.0123abcd.new.x", "a.0123abcd.new"]
    for one in kept:
        (tmp_path / one).mkdir()
    (tmp_path / ".a.00000000.new").touch()  # a file is nobody's
    sweep(tmp_path, name)
    others = [] if not name else [".a.b.0123abcd.new", ".b.0123abcd.new"]
    assert listed(tmp_path) == sorted([*kept, ".a.00000000.new", *others])
    sweep(tmp_path / "absent")


def test_a_writer_sweeps_its_own_name_unless_told(tmp_path: Path) -> None:
    for tidy in (False, True):
        (tmp_path / "a").unlink(missing_ok=True)
        sweep(tmp_path)
        leftover(tmp_path, "a")
        with writable(tmp_path / "a", tidy=tidy) as new:
            new.touch()
        assert listed(tmp_path) == ([".a.0123abcd.new"] if not tidy else []) + ["a"]


def test_what_the_living_hold_is_kept(tmp_path: Path) -> None:
    with temporary(tmp_path / "a") as folder:
        (folder / "part").touch()
        sweep(tmp_path)
        assert listed(folder) == [LOCK, "part"]
        assert folder.parent == tmp_path
        with temporary(tmp_path / "a") as other:
            assert other != folder
    assert listed(tmp_path) == []


def test_a_disk_without_locks_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "take", Mock(side_effect=NoLocksError))
    with temporary(tmp_path / "a") as folder:
        (folder / "part").touch()
    assert listed(tmp_path) == []


def test_what_cannot_be_removed_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as another user's."""

    def fails(*_: object, **__: object) -> None:
        raise PermissionError

    leftover(tmp_path, "a")
    monkeypatch.setattr(os, "rmdir", fails)
    write(tmp_path / "a", "one")
    sweep(tmp_path)
    assert (tmp_path / "a").read_text() == "one"
    monkeypatch.setattr(output, "take", lambda path: None)
    with temporary(tmp_path / "b") as last:
        assert last.is_dir()


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("together", [True, False])
def test_a_folder_takes_the_place_of_a_folder(together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not together:
        monkeypatch.setattr(output, "exchanged", lambda *_: False)
    old, new = folder(tmp_path / "a", "old"), folder(tmp_path / "new", "new")
    put(new, old, tmp_path / OLD)
    assert (old / "file").read_text() == "new"
    assert (tmp_path / ("new" if together and exchanged(old, old) else OLD) / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("platform", "offered", "done"),
    [("linux", 0, True), ("linux", -1, False), ("linux", None, False), ("darwin", 0, False)],
)
def test_folders_are_exchanged_where_the_system_can(
    platform: str, offered: int | None, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is told where it cannot, or did not: then the caller moves one after the other."""
    asked = list[object]()

    def renameat2(*arguments: object) -> int | None:
        asked.extend(arguments)
        return offered

    system = SimpleNamespace() if offered is None else SimpleNamespace(renameat2=renameat2)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: system)
    monkeypatch.setattr(sys, "platform", platform)
    assert exchanged(tmp_path / "one", tmp_path / "other") is done
    if platform == "linux" and offered is not None:  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
        assert asked == [-100, os.fsencode(tmp_path / "one"), -100, os.fsencode(tmp_path / "other"), 2]


def test_what_was_moved_away_comes_back_where_the_new_cannot_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "exchanged", lambda *_: False)
    old, new, rename = folder(tmp_path / "a", "old"), folder(tmp_path / "new", "new"), Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path == new:
            raise OSError("full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="full"):
        put(new, old, tmp_path / OLD)
    assert (old / "file").read_text() == "old"
    assert listed(tmp_path) == ["a", "new"]


def test_what_a_dead_writer_moved_away_is_put_back(tmp_path: Path) -> None:
    def dead(name: str, moved: bool = True) -> Path:
        made = leftover(tmp_path, name)
        (made / NEW).mkdir()
        folder(made / NEW / name, "new")
        if moved:
            folder(made / OLD, "old")
        return made

    dead("a")
    restore(tmp_path / "a")
    assert (tmp_path / "a" / "file").read_text() == "old"
    dead("b", moved=False)
    restore(tmp_path / "b")
    assert not (tmp_path / "b").exists()
    made = dead("c")
    held = take(made / LOCK)
    assert held is not None
    restore(tmp_path / "c")  # the writer lives, and is about to put its own there
    assert not (tmp_path / "c").exists()
    release(made / LOCK, held)
    folder(tmp_path / "c", "there")
    restore(tmp_path / "c")
    assert (tmp_path / "c" / "file").read_text() == "there"
