"""What ``--force`` replaces, and what it is not meant for."""

import json
import os
from pathlib import Path

import pytest

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import HASH
from edge_sampler.runtime.output import LOCK, NEW, OLD, check_writable, writable


@pytest.mark.parametrize("kind", ["file", "bundle"])
@pytest.mark.parametrize("leads", ["nowhere", "to itself"])
def test_a_link_that_leads_nowhere_is_told(kind: str, leads: str, tmp_path: Path) -> None:
    link = tmp_path / "a"
    link.symlink_to(tmp_path / "absent" if leads == "nowhere" else link)
    for force in (False, True):
        with pytest.raises(UserError, match="a is a link that leads nowhere; remove it, or choose another place"):
            check_writable(link, force, kind)
        with pytest.raises(UserError, match="a is a link that leads nowhere; remove it, or choose another place"):
            check_writable(link / "b" / "c", force, kind)
    assert link.is_symlink()


@pytest.mark.parametrize("kind", ["file", "bundle"])
def test_a_way_back_is_the_systems(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a link, ``..`` is not the folder that holds the link, and what is there is looked at and written there."""
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here" / "deep")
    (tmp_path / "a").write_text("another's")
    monkeypatch.chdir(tmp_path)
    with writable(Path("link/../a"), None, kind) as new:
        new.write_text("new")
    assert (tmp_path / "here" / "a").read_text() == "new"
    assert (tmp_path / "a").read_text() == "another's"
    with pytest.raises(UserError, match=r"absent/\.\. leads back from a folder that is not there"):
        check_writable(Path("absent/../b"), True, kind)
    assert sorted(os.listdir()) == ["a", "here", "link"]


def test_another_programs_manifest_makes_no_bundle(tmp_path: Path) -> None:
    """Web applications have a manifest.json too, and there are models of Triton that are not ours."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "an application", "icons": []}')
    with pytest.raises(UserError, match="app is a folder but no bundle; only a bundle may be replaced"):
        check_writable(tmp_path / "app", True, "bundle")
    whole = bundle(tmp_path / "whole")
    check_writable(whole, True, "bundle")
    listed = '{"files": {"sampler.onnx": "/static/sampler.abc.onnx"}, "manifest": "manifest_sha256"}'
    (tmp_path / "app" / "manifest.json").write_text(listed)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "manifest.json").symlink_to(whole / "manifest.json")
    for name in ("app", "linked"):
        with pytest.raises(UserError, match=f"{name} is a folder but no bundle; only a bundle may be replaced"):
            check_writable(tmp_path / name, True, "bundle")
    (tmp_path / "app" / "config").write_text("theirs")
    with pytest.raises(UserError, match="app is a folder but no model; only a model may be replaced"):
        check_writable(tmp_path / "app", True, "model", ("config", lambda content: content == b"ours"))


OWN = {"schema": 3, "files": {"a": {"bytes": 12}}, HASH: "0123"}


@pytest.mark.parametrize(
    ("content", "ours"),
    [
        (json.dumps(OWN), True),
        (json.dumps(OWN, indent=2), True),  # by a formatter
        (json.dumps(OWN, indent=1) + "\n", True),
        (json.dumps(OWN, indent=1).replace("12", "1r"), True),  # a flipped bit
        (json.dumps(OWN, indent=1).replace("12", "1\udcb2"), True),
        (json.dumps(OWN, indent=1)[:-9], False),  # cut short, it is like any text
        (json.dumps(list(OWN)), False),
        (json.dumps({"deployed": [OWN]}, indent=1), False),
        (json.dumps({"deployed": OWN}, indent=1).replace("12", "1r"), False),
        (f'"{HASH}":', False),
        (f'# Notes\n "{HASH}": "0123"\n}}\n', False),
    ],
)
def test_a_bundles_manifest_is_known_though_it_is_damaged(content: str, ours: bool, tmp_path: Path) -> None:
    """Another's file that speaks of bundles is none: what lies beside it would be lost."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_text(content, errors="surrogateescape")
    if ours:
        check_writable(tmp_path / "a", True, "bundle")
    else:
        with pytest.raises(UserError, match="a is a folder but no bundle; only a bundle may be replaced"):
            check_writable(tmp_path / "a", True, "bundle")


def bundle(folder: Path) -> Path:
    """As far as a writer looks."""
    (folder / "engines").mkdir(parents=True)
    listed = ["sampler.onnx", "plan.json", "engines/a.engine"]
    (folder / "manifest.json").write_text(json.dumps({"files": {name: {} for name in listed}, HASH: ""}))
    for name in (*listed, "manifest.json.minisig", "README.md"):
        (folder / name).write_text("its own")
    return folder


PARTS = ["manifest.json", "manifest.json.minisig", "sampler.onnx", "plan.json", "engines/a.engine"]


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_a_bundle_is_not_replaced_but_by_who_changes_the_bundle(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture over plan.json would leave a bundle that nothing opens."""
    whole = bundle(tmp_path / "whole")
    monkeypatch.chdir(whole)
    for target in (whole / name, Path(name), Path("engines") / ".." / name):
        with pytest.raises(UserError, match=r"is a part of the bundle .*whole, which needs it; choose another place"):
            check_writable(target, force=True)
    check_writable(whole / name, force=True, kind="part")
    if name != "manifest.json":
        (whole / name).unlink()
        with pytest.raises(UserError, match="is a part of the bundle"):  # as bad as one that was there
            check_writable(whole / name, force=False)
        (whole / name).write_text("its own")
    for other in (whole / "README.md", whole / "plan.json.png", whole / "engines" / "plan.json"):
        check_writable(other, force=True)
    (whole / "manifest.json").write_text(json.dumps({"files": {"plan.json": {}}}))  # of something else
    check_writable(whole / name, force=True)


def test_a_bundle_of_links_has_parts_too(tmp_path: Path) -> None:
    """As hubs keep them in their caches."""
    bundle(tmp_path / "whole")
    (tmp_path / "linked").mkdir()
    for name in ("manifest.json", "plan.json"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "whole" / name)
        with pytest.raises(UserError, match="is a part of the bundle"):
            check_writable(tmp_path / "linked" / name, force=True)


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bundle(tmp_path / "whole")
    (tmp_path / "link").symlink_to(whole)
    for here in (whole, whole / "engines"):
        monkeypatch.chdir(here)
        for target in (whole, Path(os.path.relpath(whole)), tmp_path / "link"):
            with pytest.raises(UserError, match="is the current folder, or holds it: start the command elsewhere"):
                check_writable(target, True, "bundle")
    monkeypatch.chdir(tmp_path)
    check_writable(whole, True, "bundle")


@pytest.mark.parametrize("name", [LOCK, OLD, NEW, ".lock", ".old"])
@pytest.mark.parametrize("kind", ["file", "bundle"])
def test_names_that_writers_use_are_names_like_others(name: str, kind: str, tmp_path: Path) -> None:
    for text in ("one", '{"sampler.onnx":'):
        with writable(tmp_path / name, True, kind, ("text", lambda content: content == b"one")) as new:
            if kind != "file":
                new.mkdir()
            (new if kind == "file" else new / "text").write_text(text)
        assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name if kind == "file" else tmp_path / name / "text").read_text() == text


def test_a_command_without_force_does_not_advise_it(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    for force, advised in ((None, False), (False, True)):
        with pytest.raises(UserError, match=r"a exists; choose another place") as told:
            check_writable(tmp_path / "a", force)
        assert ("--force" in str(told.value)) is advised


def test_a_bundle_goes_where_its_graphs_can_be_opened(tmp_path: Path) -> None:
    latin = tmp_path / os.fsdecode(b"\xe9t\xe9")
    for place in (latin, latin / "in" / "it"):
        with pytest.raises(UserError, match="bundles need paths in UTF-8, as ONNX Runtime does; choose another folder"):
            check_writable(place, False, "bundle")
    assert not latin.exists()
    check_writable(tmp_path / "été", False, "bundle")
    check_writable(latin / "a.png", False)
