"""Writes that are old or new, and whole, at whatever moment the writer dies.

What is to be written is made in a temporary folder beside its place, ``.NAME.<8 hex digits>.new``, which this process
holds by a lock. It takes its place in one step. The next writer of that place removes what one that died left.
"""

import ctypes
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.lock import release, take
from edge_sampler.runtime.manifest import MANIFEST

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.new")  # as ``temporary`` names them
Marker = tuple[str, bytes]  # a file that tells a folder's kind, and what stands in it: others have files of that name
BUNDLE: Marker = (MANIFEST, b'"sampler.onnx"')
LOCK, OLD = ".lock", ".old"  # in them
TRIES = 5  # to lock what a sweeper may see before its lock
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def check_writable(target: Path, force: bool, kind: str = "file", marker: Marker = BUNDLE) -> None:
    """Raises UserError when ``target`` exists without ``force``, is of another kind, or cannot be written.

    ``kind`` is "file", or what the folder that is to be written is called; ``marker`` tells it from others then.
    """
    check_link(target)
    restore(target)
    if target.exists() and not force:
        raise UserError(f"{target} exists; choose another with --out, or add --force")
    if target.exists() and not (target.is_file() if kind == "file" else is_marked(target, marker)):
        found = "folder" if target.is_dir() else "file" if target.is_file() else "device"
        raise UserError(f"{target} is a {found} but no {kind}; --force replaces {kind}s only")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary(Path(os.path.abspath(target))):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error.strerror}") from error


def is_marked(folder: Path, marker: Marker) -> bool:
    name, stands = marker
    return (folder / name).is_file() and stands in (folder / name).read_bytes()


def check_link(target: Path) -> None:
    """Raises UserError for a link that leads nowhere: neither it nor what it names can be replaced by a folder."""
    if target.is_symlink() and not target.exists():
        raise UserError(f"{target} is a link that leads nowhere; remove it, or choose another place")


@contextmanager
def writable(
    target: Path, force: bool = False, kind: str = "file", marker: Marker = BUNDLE, tidy: bool = True
) -> Iterator[Path]:
    """Yields a temporary path, of the target's name, that becomes ``target`` if all goes well.

    Whatever happens inside, nothing half-written stays, and what was there stays until the new is whole. ``tidy``
    removes what other writers of it that died left; where there are very many files beside it, ``sweep`` does so once.
    Raises what ``check_writable`` raises.
    """
    check_writable(target, force, kind, marker)
    place = Path(os.path.abspath(target))
    if tidy:
        sweep(place.parent, place.name)
    with temporary(place) as folder:
        yield folder / place.name
        interrupt.check()
        if place.exists() and not force:
            raise UserError(
                f"{target} was made meanwhile, by another process; choose another with --out, or add --force"
            )
        put(folder / place.name, place, folder / OLD)


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for what is to take its place, with a name that no other process has.

    In containers, and on several hosts with one disk, process ids are the same.
    """
    lock = None
    for last in [False] * TRIES + [True]:  # on a disk without locks the last goes on without: there nobody sweeps
        folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
        folder.mkdir()
        with suppress(FileNotFoundError):
            lock = take(folder / LOCK)
        if lock is not None or last:
            break
        shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        if lock is not None:
            release(folder / LOCK, lock)
        shutil.rmtree(folder, ignore_errors=True)


def put(new: Path, target: Path, old: Path) -> None:
    """Moves a file or folder to ``target``, in one step; what was there is in the place of ``new`` or ``old`` then.

    Where the system cannot exchange two folders in one step, ``restore`` undoes half of it.
    """
    if not new.is_dir() or not target.exists():
        new.replace(target)
    elif not exchanged(new, target):
        try:
            target.rename(old)
            new.rename(target)
        except BaseException:
            if not target.exists() and old.exists():
                old.rename(target)
            raise


def exchanged(one: Path, other: Path) -> bool:
    """Each has the other's place, in one step; False, and nothing is done, where the system or the disk cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def restore(target: Path) -> None:
    """Puts back what a writer moved away that died before its new was there. Does nothing where that is not so."""
    if target.exists():
        return
    place = Path(os.path.abspath(target))
    for folder in _leftovers(place.parent, place.name):
        with _taken_over(folder) as dead, suppress(OSError):
            if dead and (folder / OLD).exists() and (folder / place.name).exists():
                (folder / OLD).rename(place)


def sweep(folder: Path, name: str = "") -> None:
    """Removes what writers that died left in ``folder``; with ``name``, those of that file or folder alone."""
    for leftover in _leftovers(folder, name):
        with _taken_over(leftover) as dead:
            if dead:
                shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(folder: Path, name: str) -> Iterable[Path]:
    wanted = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.new") if name else LEFTOVER
    try:
        return [path for path in folder.iterdir() if wanted.fullmatch(path.name) and path.is_dir()]
    except OSError:
        return []


@contextmanager
def _taken_over(folder: Path) -> Iterator[bool]:
    """Whether no process holds that temporary folder; then this one does, inside."""
    lock = None
    with suppress(OSError):
        lock = take(folder / LOCK)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            release(folder / LOCK, lock)
