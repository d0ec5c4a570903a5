"""Writes that are whole or not there: into a temporary neighbour first, renamed at the end."""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST

LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.(new|old|trial)(\..+)?")  # as ``_neighbour`` names them


def check_writable(target: Path, force: bool) -> None:
    """Raises UserError when ``target`` exists without ``force``, is a folder but no bundle, or cannot be written."""
    if target.exists() and not force:
        raise UserError(f"{target} exists; choose another name or add --force")
    if target.is_dir() and not (target / MANIFEST).exists():
        raise UserError(f"{target} is a folder but no bundle; --force replaces bundles only")
    trial = _neighbour(target, "trial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise UserError(f"cannot write to {target.parent}: {error.strerror}") from error


@contextmanager
def writable(target: Path, force: bool = False) -> Iterator[Path]:
    """Yields the path of a temporary neighbour, with the target's suffix, that becomes ``target`` if all goes well.

    Whatever happens inside, nothing half-written stays, and what was there stays until the new is whole. Raises what
    ``check_writable`` raises.
    """
    check_writable(target, force)
    temporary, replaced = _neighbour(target, "new"), _neighbour(target, "old")
    try:
        yield temporary
        if target.exists() and not force:
            raise UserError(f"{target} was made meanwhile, by another process; choose another name or add --force")
        if target.is_dir():
            target.rename(replaced)
        temporary.replace(target)
    finally:
        for leftover in (temporary, replaced):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _neighbour(target: Path, end: str) -> Path:
    """A name that no other process has; in containers, and on several hosts with one disk, process ids are the same."""
    return target.with_name(f".{target.stem}.{secrets.token_hex(4)}.{end}{target.suffix}")


def sweep(folder: Path) -> None:
    """Removes what writers that died left in ``folder``, where no other process writes."""
    for leftover in folder.iterdir():
        if LEFTOVER.fullmatch(leftover.name):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
