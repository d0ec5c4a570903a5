"""Reads .npz files that others may have written or damaged: no pickles, and no more memory than the file has bytes."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

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
