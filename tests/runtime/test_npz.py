"""Arrays of .npz files: what NumPy stores is read, and what claims to be more than it is, is a ValueError."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from edge_sampler.runtime.command_line import given
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.npz import read_npz

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
    "by columns": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "one": np.array(7),
    "none": np.zeros((0, 3), np.int64),
    "bools": np.array([True, False]),
    "words": np.array(["a", "longer"]),
    "big end first": np.arange(3, dtype=">i4"),
}


def archive(path: Path, content: bytes, **how: Any) -> Path:
    """A file with one member."""
    with zipfile.ZipFile(path, "w", **how) as file:
        file.writestr("a.npy", content)
    return path


def member(header: str, data: bytes, version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + size + text + data


def test_what_numpy_stores_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type]
    found = read_npz(tmp_path / "a.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        found[name][...] = found[name]  # it may be written to


def test_the_second_version_is_read_and_no_later_one(tmp_path: Path) -> None:
    for version in ((2, 0), (3, 0)):
        content = io.BytesIO()
        npy.write_array(content, ARRAYS["floats"], version)
        archive(tmp_path / f"{version[0]}.npz", content.getvalue())
    np.testing.assert_array_equal(read_npz(tmp_path / "2.npz")["a"], ARRAYS["floats"])
    with pytest.raises(ValueError, match=r"'a.npy' is an array of version \(3, 0\)"):
        read_npz(tmp_path / "3.npz")


@pytest.mark.parametrize(
    ("header", "data", "told"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", bytes(20), r"float32 \[2, 3\] and has 20 bytes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", bytes(28), r"float32 \[2, 3\] and has 28 bytes"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}", bytes(4), r"holds float32 \[-1, -1\]"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", b"", "has 0 bytes"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", bytes(8), "holds object"),
        ("{'descr': '<U0', 'fortran_order': False, 'shape': (3,)}", b"", r"holds <U0 \[3\]"),
        ("{'descr': '<f4', 'shape': (1,)}", bytes(4), "has a header that cannot be read"),
        ("(" * 300, b"", "has a header that cannot be read"),
    ],
)
def test_what_claims_another_size_or_kind_is_refused(header: str, data: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        read_npz(archive(tmp_path / "a.npz", member(header, data)))


def test_no_array_takes_more_than_the_file(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "small.npz", a=np.arange(3))
    with pytest.raises(ValueError, match=r"'a\.npy' is compressed"):
        read_npz(tmp_path / "small.npz")
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**5))
    with pytest.raises(ValueError, match="compressed, or overlap"):
        read_npz(tmp_path / "a.npz")


def test_what_is_no_archive_is_a_value_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.arange(100))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[300] ^= 1  # in the array: its checksum tells
    for wrong in (b"", b"PK\x05", bytes(content)):
        (tmp_path / "a.npz").write_bytes(wrong)
        with pytest.raises(ValueError, match=r"no \.npz"):
            read_npz(tmp_path / "a.npz")
    with pytest.raises(OSError, match="absent"):
        read_npz(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match="magic"):
        read_npz(archive(tmp_path / "a.npz", b"no array at all"))


def test_what_a_user_names_may_be_compressed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **ARRAYS)  # type: ignore[arg-type]
    np.save(tmp_path / "b.npy", ARRAYS["words"])
    found = given([str(tmp_path / "a.npz"), f"b={tmp_path / 'b.npy'}"])
    assert list(found) == [*ARRAYS, "b"]
    for name, array in {**ARRAYS, "b": ARRAYS["words"]}.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("text", ["{}", "a={}"], ids=[".npz", ".npy"])
@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "device", "empty", "text", "objects", "cut", "flipped"])
def test_what_a_user_names_and_cannot_be_read_is_one_line(text: str, kind: str, tmp_path: Path) -> None:
    """Nothing waits for what a pipe may bring, and nobody is told to trust a file."""
    path, content = tmp_path / f"a.np{'y' if '=' in text else 'z'}", io.BytesIO()
    array = np.array([{}], object) if kind == "objects" else np.arange(100)
    if "=" in text:
        np.save(content, array, allow_pickle=True)
    else:
        np.savez_compressed(content, a=array)
    made = content.getvalue()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind != "absent":
        middle = len(made) // 3
        flipped = made[:9] + b"\xff" * 30 + made[39:]
        path.write_bytes(
            {"empty": b"", "text": b"some words", "objects": made, "cut": made[:middle], "flipped": flipped}[kind]
        )
    told = {"absent": "No such file or directory", "folder": "it is no file", "pipe": "it is no file"}
    with pytest.raises(UserError, match=f"not a readable {path.suffix} file") as refused:
        given([text.format(path)])
    assert str(refused.value).startswith(f"{path}: ")
    assert told.get(kind, "") in str(refused.value)
    assert "allow_pickle" not in str(refused.value)
