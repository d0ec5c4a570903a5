"""Old or new, and whole, at whatever moment a writer dies; and what two writers do to one another."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sampler.export import extend
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import check_writable, writable
from tests.dying import WRITERS, bundle, engine


@pytest.fixture(autouse=True)
def _builds_are_real_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """``engine`` replaces them."""
    for name in ("build", "read_graph"):
        monkeypatch.setattr(extend, name, getattr(extend, name))


ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.parametrize(
    ("writer", "how"),
    [
        *((writer, how) for writer in WRITERS for how in ("killed", "interrupted")),
        *(("bundle", f"{how}-without-exchange") for how in ("killed", "interrupted")),
    ],
)
def test_old_or_new_and_whole_at_every_step(writer: str, how: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.dying", str(tmp_path), writer, how]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 8


def test_a_living_writer_keeps_its_own(tmp_path: Path) -> None:
    """What another writer of the same name sweeps is of dead ones alone."""
    with writable(tmp_path / "a", force=True) as first:
        first.write_text("first")
        with writable(tmp_path / "a", force=True) as second:
            second.write_text("second")
        assert first.read_text() == "first"
        assert (tmp_path / "a").read_text() == "second"
    assert (tmp_path / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_force_replaces_like_by_like(tmp_path: Path) -> None:
    bundle(tmp_path, "one")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (
        ("b", "file"),
        ("folder", "file"),
        ("file", "bundle"),
        ("file", "site"),
        ("folder", "bundle"),
        ("pipe", "file"),
    ):
        with pytest.raises(UserError, match=f"but no {kind}; only a {kind} may be replaced"):
            check_writable(tmp_path / name, True, kind)
    check_writable(tmp_path / "b", True, "bundle")
    check_writable(tmp_path / "file", True)


def test_of_two_that_add_to_one_bundle_none_is_lost(tmp_path: Path) -> None:
    engine(tmp_path, "one")
    there = Bundle.open(tmp_path / "b")

    def add() -> None:
        with extend.extended(there) as (folder, _):
            (folder / "more").write_text("")

    with extend.extended(there), pytest.raises(UserError, match=r"another process adds to .*: wait for it"):
        add()
    engine(tmp_path, "two")
    with pytest.raises(UserError, match="was changed meanwhile, by another process: start again"):
        add()
    assert [Bundle.open(tmp_path / "b").read(one.file) for one in Bundle.open(tmp_path / "b").engines] == [b"two"]


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_takes_the_place_of_a_note_is_told_before_the_work(kind: str, tmp_path: Path) -> None:
    engine(tmp_path, "one")
    note = tmp_path / "b" / extend.JOINING
    note.mkdir() if kind == "folder" else os.mkfifo(note)
    with (
        pytest.raises(UserError, match=f"{extend.JOINING} is a .* but no part"),
        extend.extended(Bundle.open(tmp_path / "b")),
    ):
        pytest.fail("it began")


@pytest.mark.parametrize("kind", ["file", "pipe", "nowhere", "loop"])
def test_what_takes_the_place_of_the_engines_is_told_before_the_work(kind: str, tmp_path: Path) -> None:
    engine(tmp_path, "one")
    bundle = Bundle.open(tmp_path / "b")
    engines = tmp_path / "b" / "engines"
    shutil.rmtree(engines)
    if kind in ("file", "pipe"):
        engines.touch() if kind == "file" else os.mkfifo(engines)
    else:
        engines.symlink_to("engines" if kind == "loop" else "absent")
    (tmp_path / "b" / extend.JOINING).write_text('["engines/half"]')  # of an addition that died
    with pytest.raises(UserError, match="engines is no folder, and engines go there: remove it"):
        with extend.extended(bundle):
            pytest.fail("it began")
    assert not (tmp_path / "b" / extend.JOINING).exists()


@pytest.mark.parametrize("note", ["5", "[5, null]", "{", '{"plan.json": 1}'])
def test_a_damaged_note_and_pipes_are_passed_over(note: str, tmp_path: Path) -> None:
    engine(tmp_path, "one")
    (tmp_path / "b" / extend.JOINING).write_text(note)
    os.mkfifo(tmp_path / "b" / f"{extend.NEW}pipe")
    engine(tmp_path, "two")
    assert not (tmp_path / "b" / extend.JOINING).exists()
    assert Bundle.open(tmp_path / "b").plan.nfe == 1


def test_what_takes_the_place_of_a_new_file_is_told_and_nothing_left(tmp_path: Path) -> None:
    engine(tmp_path, "one")
    (tmp_path / "b" / "new").mkdir()
    before = sorted(path.name for path in (tmp_path / "b").iterdir())
    with pytest.raises(UserError, match="new is a folder, where a file is to be: remove it"):
        with extend.extended(Bundle.open(tmp_path / "b")) as (folder, _):
            (folder / "new").write_text("file")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == before


def test_a_damaged_bundle_is_told_before_the_work(tmp_path: Path) -> None:
    """Whatever file it is; but an engine, which can be built again."""
    engine(tmp_path, "one")
    bundle = Bundle.open(tmp_path / "b")
    for name in bundle.manifest["files"]:
        content = (tmp_path / "b" / name).read_bytes()
        (tmp_path / "b" / name).write_bytes(content + b" ")
        if name.startswith(extend.ENGINES):
            with extend.extended(bundle):
                pass
            bundle = Bundle.open(tmp_path / "b")
        else:
            with pytest.raises(UserError, match=f"{re.escape(name)} is not the file the manifest describes"):
                with extend.extended(bundle):
                    pytest.fail("it began")
        (tmp_path / "b" / name).write_bytes(content)


def test_only_what_joined_is_cleared(tmp_path: Path) -> None:
    """Whatever a bundle from elsewhere says: nothing out of it, and nothing that its manifest lists."""
    engine(tmp_path, "one")
    (tmp_path / "outside").mkdir()
    for name in ("mine", "outside/mine"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "b" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "b" / "half").write_text("joined")
    (tmp_path / "b" / "folder").mkdir()
    names = ["../mine", "link/mine", "folder", "plan.json", "half"]
    (tmp_path / "b" / extend.JOINING).write_text(json.dumps(names))
    engine(tmp_path, "two")
    assert (tmp_path / "mine").exists()
    assert (tmp_path / "outside" / "mine").exists()
    assert Bundle.open(tmp_path / "b").plan.nfe == 1
    assert not (tmp_path / "b" / "half").exists()
