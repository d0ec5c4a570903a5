"""Reads .npz files that others may have written or damaged: no pickles, and no more memory than the file has bytes.

What a user names as a condition's file may be compressed.
"""

import stat
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from edge_sampler.runtime.errors import UserError

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}  # by version


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name, as ``np.savez`` stores them. Raises OSError, and ValueError for anything else."""
    try:
        with zipfile.ZipFile(path) as stored:
            if sum(one.file_size for one in stored.infolist()) > path.stat().st_size:
                raise ValueError("its arrays are compressed, or overlap")
            return {one.filename.removesuffix(".npy"): _array(stored, one) for one in stored.infolist()}
    except (zipfile.BadZipFile, RuntimeError, EOFError, MemoryError) as error:
        raise ValueError(f"no .npz ({error})") from error


def given_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name of a user's .npz, or the one of a .npy. Raises UserError for anything else."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no file")
        with path.open("rb") as file:
            if path.suffix == ".npy":
                return {path.stem: _given_array(file)}
            with zipfile.ZipFile(file) as stored:
                return {name.removesuffix(".npy"): _given_array(stored.open(name)) for name in stored.namelist()}
    except (OSError, ValueError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: not a readable {path.suffix} file ({told})") from error


def _given_array(file: IO[bytes]) -> np.ndarray:
    try:
        return npy.read_array(file, allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # it parses Python, and raises what that raises
        raise ValueError("no array, a damaged one, or one of Python's objects") from error


def _array(stored: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename!r:.60} is compressed")
    with stored.open(member) as file:
        shape, fortran, dtype = _header(file, member.filename)
        content = file.read()
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"{member.filename!r:.60} holds {dtype} {list(shape)}")
    count = 1
    for size in shape:  # Python's numbers, which have no end
        count *= size
    if count * dtype.itemsize != len(content):
        raise ValueError(f"{member.filename!r:.60} claims {dtype} {list(shape)!s:.80} and has {len(content)} bytes")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy()


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"{name!r:.60} is an array of version {version}")
    try:
        return HEADERS[version](file)
    except Exception as error:  # it parses Python, and raises what that raises
        raise ValueError(f"{name!r:.60} has a header that cannot be read ({type(error).__name__})") from error
