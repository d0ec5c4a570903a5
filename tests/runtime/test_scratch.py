"""What is needed on the way goes with its process, or with the next one."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from edge_sampler.runtime.backends.onnxrt_module import without_links
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.scratch import scratch

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs owners, and locks that a process can meet itself at")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"edge-sampler-{os.getuid()}"


def dead(folder: Path, name: str) -> Path:
    """What a process that was killed left."""
    made = folder / f".{name}.01234567.new"
    made.mkdir(parents=True)
    (made / "weights").write_text("many")
    return made


def test_a_folder_goes_at_the_end_and_those_of_the_dead_before(place: Path) -> None:
    with scratch() as first:
        (first / "a").touch()
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        left = dead(place, "scratch")
        with scratch() as second:
            assert not left.exists()
            assert second.parent == first.parent == place
            assert (first / "a").exists()  # its process lives
        assert not second.exists()
    assert list(place.iterdir()) == []


def enter() -> None:
    with scratch():
        pass


def test_a_place_of_another_kind_or_user_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.parent / "elsewhere").mkdir()
    place.symlink_to(place.parent / "elsewhere")
    with pytest.raises(UserError, match="is no folder of this user's: let TMPDIR name another one"):
        enter()
    place.unlink()
    place.touch()
    with pytest.raises(UserError, match=r"cannot write to .*: File exists; let TMPDIR name another folder"):
        enter()
    place.unlink()
    monkeypatch.setattr(os, "getuid", lambda: place.parent.stat().st_uid + 1)
    (place.parent / f"edge-sampler-{os.getuid()}").mkdir()
    with pytest.raises(UserError, match="is no folder of this user's"):
        enter()
    monkeypatch.setattr(tempfile, "tempdir", str(place.parent / "absent"))
    with pytest.raises(UserError, match=r"cannot write to .*: No such file"):
        enter()


def test_graphs_behind_links_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "blobs").mkdir()
    for name in ("a.onnx", "a.onnx.data"):
        (tmp_path / "blobs" / name[-4:]).write_text(name)
        (tmp_path / name).symlink_to(tmp_path / "blobs" / name[-4:])
    dead(tmp_path / "cache" / "linked", "graph")
    with without_links(tmp_path / "a.onnx") as path:
        assert [(one.read_text(), one.is_symlink()) for one in (path, path.with_name("a.onnx.data"))] == [
            ("a.onnx", False),
            ("a.onnx.data", False),
        ]
        assert list((tmp_path / "cache" / "linked").iterdir()) == [path.parent]
    assert list((tmp_path / "cache" / "linked").iterdir()) == []
