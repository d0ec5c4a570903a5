"""Locks that the system takes back from whoever dies: one at a time, and none on a file that has just gone."""

import errno
import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_sampler.runtime import lock
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.lock import locked, release, take

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs locks that a process can meet itself at")


def test_one_lock_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"

    def enter() -> None:
        with locked(path, "another has it"):
            pass

    with locked(path, "another has it"):
        with pytest.raises(UserError, match="another has it"):
            enter()
        assert take(path) is None
    assert not path.exists()
    enter()
    with (
        pytest.raises(UserError, match=r"cannot write .*absent/lock: No such file"),
        locked(tmp_path / "absent/lock", ""),
    ):
        pass


@pytest.mark.parametrize("why", [errno.ENOSYS, errno.ENOLCK])
def test_a_disk_without_locks_is_told(why: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(file: int, how: int) -> None:
        raise OSError(why, "no such thing")

    monkeypatch.setattr("fcntl.flock", none)
    told = r"cannot write .*lock: this disk has no locks \(no such thing\): choose another$"
    with pytest.raises(UserError, match=told), locked(tmp_path / "lock", "another has it"):
        pytest.fail("it began")
    assert not (tmp_path / "lock").exists()


def test_a_lock_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot write .*lock: Too many levels of symbolic links"):
        with locked(tmp_path / "lock", ""):
            pytest.fail("it began")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_lock_that_was_just_let_go_is_none(replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening and locking, its file may be gone, or another's."""
    path, really, opened = tmp_path / "lock", os.open, list[int]()

    def slow(name: Path, *arguments: int) -> int:
        opened.append(really(name, *arguments))
        path.unlink()
        if replaced:
            os.close(really(path, *arguments))
        return opened[-1]

    monkeypatch.setattr(os, "open", slow)
    assert take(path) is None
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


def test_a_lock_that_is_interrupted_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[int]()

    def interrupted(file: int) -> bool:
        opened.append(file)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_taken", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path / "lock")
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened[0])


def test_a_lock_is_for_everyone_to_see(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        file = take(tmp_path / "lock")
    finally:
        os.umask(before)
    assert file is not None
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o644
    release(tmp_path / "lock", file)


def test_windows_locks_one_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[tuple[int, ...]]()
    library = SimpleNamespace(LK_NBLCK=2, locking=lambda *told: asked.append(told))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "msvcrt", library)
        patch.setattr(os, "name", "nt")
        taken = lock._taken(7)
    assert taken
    assert asked == [(7, 2, 1)]
