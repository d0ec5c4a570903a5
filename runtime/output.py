"""Writes that are old or new, and whole, at whatever moment the writer dies.

What is to be written is made in a temporary folder beside its place, ``.NAME.<8 hex digits>.new``, which this process
holds by a lock; a NAME too long for that is a hash there. It takes its place in one step. The next writer of that place
removes what one that died left.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import parse_json
from edge_sampler.runtime.lock import NoLocksError, release, take
from edge_sampler.runtime.manifest import HASH, MANIFEST
from edge_sampler.runtime.signature import SIGNATURE

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # where nothing more can be written
LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.new")  # as ``temporary`` names them
Marker = tuple[str, Callable[[bytes], bool]]  # a file that tells a folder's kind, and whether that is its content
LOCK, OLD, NEW = "lock", "old", "new"  # in them
LONGEST = 255 - len("..01234567.new")  # bytes of a name that stands in a temporary's
LOOKED_AT = 2**24  # bytes of a file that tells a folder's kind
ENDS = re.compile(rb'\n "%s": "[^\n]*"\n}\n?' % HASH.encode())  # a manifest as we write it
TRIES = 5  # to lock what a sweeper may see before its lock
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def is_manifest(content: bytes) -> bool:
    """Whether it is a bundle's, damaged or not: an object with its own hash, or where that is no JSON, with its end.

    Others have files of that name, which may list bundles with their hashes.
    """
    try:
        found = parse_json(content.decode())
        return isinstance(found, dict) and HASH in found
    except ValueError:
        return content.startswith(b"{") and ENDS.search(content[-200:]) is not None


BUNDLE: Marker = (MANIFEST, is_manifest)


def check_writable(target: Path, force: bool | None, kind: str = "file", marker: Marker = BUNDLE) -> None:
    """Raises UserError when ``target`` exists without ``force``, is a bundle's own part, or cannot be written.

    ``force`` is None where the command has no such option. ``kind`` is "file", "part" of a bundle that its writer
    changes, or what the folder that is to be written is called; ``marker`` tells it from others then.
    """
    check_link(target)
    restore(target)
    if kind == "bundle":
        in_utf8(target.absolute())
    if kind == "file" and (whole := bundle_of(target)):
        raise UserError(f"{target} is a part of the bundle {whole}, which needs it; choose another place")
    if target.exists():
        check_replaceable(target, force, kind, marker)
    try:
        with temporary(place_of(target)):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error.strerror}") from error


def check_replaceable(target: Path, force: bool | None, kind: str, marker: Marker) -> None:
    """Raises UserError for what exists without ``force``, and for what ``force`` is not meant for."""
    if not force:
        raise UserError(f"{target} exists; {advice(force)}")
    own = is_marked(target, marker) and not (target / marker[0]).is_symlink()  # others link to ours
    if not (target.is_file() if kind in ("file", "part") else own):
        found = "folder" if target.is_dir() else "file" if target.is_file() else "device"
        raise UserError(f"{target} is a {found} but no {kind}; only a {kind} may be replaced")
    if target.is_dir() and Path.cwd().is_relative_to(target.resolve()):
        raise UserError(f"{target} is the current folder, or holds it: start the command elsewhere")


def advice(force: bool | None) -> str:
    return "choose another place" + ", or add --force" * (force is not None)


def bundle_of(file: Path) -> Path | None:
    """The bundle whose manifest lists that file, or is that file."""
    place = place_of(file)
    for folder in place.parents[:2]:  # engines are one deeper
        name, manifest = place.relative_to(folder).as_posix(), content_of(folder / MANIFEST)
        listed = name in (MANIFEST, SIGNATURE) or json.dumps(name).encode() in manifest
        if listed and is_manifest(manifest):
            return folder
    return None


def is_marked(folder: Path, marker: Marker) -> bool:
    name, fits = marker
    return (folder / name).is_file() and fits(content_of(folder / name))


def content_of(path: Path) -> bytes:
    """As much of a file as is looked at; nothing, where it is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(LOOKED_AT)


def check_link(target: Path) -> None:
    """Raises UserError for a path that goes over a link that leads nowhere, or back from a folder that is not there."""
    for path in (target, *target.parents):
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path} is a link that leads nowhere; remove it, or choose another place")
        if path.name == ".." and not path.exists():
            raise UserError(f"{path} leads back from a folder that is not there; choose another place")


def place_of(target: Path) -> Path:
    """Its one absolute path: what the system makes of ``..`` behind a link; the last name may be a link's own."""
    if target.name in ("", ".."):
        return Path(os.path.realpath(target))
    return Path(os.path.realpath(target.parent), target.name)


def in_utf8(path: Path) -> str:
    """The path, for libraries that take no other. Raises UserError where the disk's bytes are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: bundles need paths in UTF-8, as ONNX Runtime does; choose another folder") from error
    return str(path)


@contextmanager
def writable(
    target: Path, force: bool | None = False, kind: str = "file", marker: Marker = BUNDLE, tidy: bool = True
) -> Iterator[Path]:
    """Yields a temporary path, of the target's name, that becomes ``target`` if all goes well.

    Whatever happens inside, nothing half-written stays, and what was there stays until the new is whole. ``tidy``
    removes what other writers of it that died left; where there are very many files beside it, ``sweep`` does so once.
    Raises what ``check_writable`` raises.
    """
    check_writable(target, force, kind, marker)
    place = place_of(target)
    if tidy:
        sweep(place.parent, place.name)
    with temporary(place) as folder:
        make(folder / NEW)
        try:
            yield folder / NEW / place.name
        except OSError as error:
            if error.errno in FULL and error.filename is None:
                error.filename = str(target)
            raise
        interrupt.check()
        if place.exists() and not force:
            raise UserError(f"{target} was made meanwhile, by another process; {advice(force)}")
        put(folder / NEW / place.name, place, folder / OLD)


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` for what is to take its place, with a name that no other process has.

    In containers, and on several hosts with one disk, process ids are the same. Folders above it that were not there go
    with it, unless they hold something else by then.
    """
    lock, missing = None, [above for above in target.parents if not above.exists()]
    try:
        for last in [False] * TRIES + [True]:  # which goes on without a lock
            folder = target.with_name(f".{_hidden(target.name)}.{secrets.token_hex(4)}.new")
            try:
                make(folder)
                lock = take(folder / LOCK)
            except NoLocksError:  # there nobody sweeps
                break
            except FileNotFoundError:  # another process swept it, or removed a folder that it had made for nothing
                if last:
                    raise
            if lock is not None or last:
                break
            shutil.rmtree(folder, ignore_errors=True)
        yield folder
    finally:
        if lock is not None:
            release(folder / LOCK, lock)
        shutil.rmtree(folder, ignore_errors=True)
        for above in missing:
            with suppress(OSError):
                above.rmdir()


def make(folder: Path) -> None:
    """A new folder that its owner can write to, whatever umask there is."""
    make_all(folder.parent)
    folder.mkdir()
    folder.chmod(folder.stat().st_mode | stat.S_IRWXU)


def make_all(folder: Path) -> None:
    """A folder and those above it, where they are not there: mkdir(parents=True) calls itself for each, too deep."""
    for one in (*reversed(folder.parents), folder):
        one.mkdir(exist_ok=True)


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
    place = place_of(target)
    for folder in _leftovers(place.parent, place.name):
        with _taken_over(folder) as dead:
            if dead:
                _put_back(folder)


def sweep(folder: Path, name: str = "") -> None:
    """Removes what writers that died left in ``folder``; with ``name``, those of that file or folder alone.

    What they had moved away comes back first, where nothing else is in its place.
    """
    for leftover in _leftovers(folder, name):
        with _taken_over(leftover) as dead:
            if dead:
                _put_back(leftover)
                shutil.rmtree(leftover, ignore_errors=True)


def _put_back(leftover: Path) -> None:
    """What its writer, who died, moved away before the new took the place, which is in the leftover still."""
    with suppress(OSError):
        for new in (leftover / NEW).iterdir():
            if (leftover / OLD).exists() and not (leftover.parent / new.name).exists():
                (leftover / OLD).rename(leftover.parent / new.name)


def _hidden(name: str) -> str:
    """The name in a temporary folder's, which file systems allow to be as long as the file's own."""
    return name if len(os.fsencode(name)) <= LONGEST else hashlib.sha256(os.fsencode(name)).hexdigest()


def _leftovers(folder: Path, name: str) -> Iterable[Path]:
    wanted = re.compile(rf"\.{re.escape(_hidden(name))}\.[0-9a-f]{{8}}\.new") if name else LEFTOVER
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
