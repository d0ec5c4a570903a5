"""Every tutorial is what its reader meets today, and the runner that says so notices what is not."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from polygraphy.tools._main import main as polygraphy
from polygraphy.tools.run.run import Run

from tests.tutorials import BLOCK, PICTURE, ROOT, alike, differences, same

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
posix = pytest.mark.skipif(sys.platform == "win32", reason="blocks of sh are bash's")


@posix
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_is_as_it_says(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    assert not differences(page, tmp_path)


def test_all_of_a_page_is_looked_at() -> None:
    """No fence that the runner does not know, no picture that nothing makes, and no longer a page than agreed."""
    shown = set()
    for page in PAGES:
        text = page.read_text("utf-8")
        assert text.count("```") == sum(block[0].count("```") for block in BLOCK.finditer(text)), page
        assert text.count("\n") <= 120, page
        shown |= set(PICTURE.findall(text))
        assert text.count("![") == len(PICTURE.findall(text)), page
    assert shown == {path.name for path in (ROOT / "docs" / "tutorials").glob("*.png")}


def test_what_is_not_run_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Polygraphy's own parser; our commands by ours, in tests/test_docs.py. Nothing else is left out but pip."""
    monkeypatch.setattr(Run, "run", lambda *_: 0)
    lines = [
        line
        for page in PAGES
        for _, code, _ in BLOCK.findall(page.read_text("utf-8"))
        if code.startswith(("# needs ", "# takes "))
        for line in code.replace("\\\n", " ").splitlines()[1:]
    ]
    words = [shlex.split(line) for line in lines]
    assert {word[0] for word in words} <= {"polygraphy", "python", "python3", "pip", ".venv/bin/pip", "."}
    commands = [word[1:] for word in words if word[0] == "polygraphy"]
    assert commands
    assert [polygraphy(command) for command in commands] == [0] * len(commands)


@posix
def test_a_page_is_run_from_top_to_bottom(tmp_path: Path) -> None:
    """In one shell: what is saved, set and entered stays. What needs a GPU is not run; what is new is written."""
    page, first, second = tmp_path / "page.md", tmp_path / "first", tmp_path / "second"
    saved = "```python\n# grey.py\nfrom PIL import Image\nImage.new('L', (4, 4), 128).save('grey.png')\n```\n"
    skipped = "```sh\n# needs a GPU\nexit 1\n```\n"
    shell = "```sh\npython grey.py\nmkdir own\ncd own\nexport WORD='a b'\n```\n"
    run = '```sh\necho one\necho $WORD $(basename "$PWD")\n```\n\n```text\n…\n2\n```\n\n![grey](grey.png)\n'
    page.write_text(saved + skipped + shell + run)
    for folder in (first, second):
        folder.mkdir()
    said = differences(page, first, write=True)
    assert len(said) == 2
    assert "now it prints\n…\na b own\n" in said[0]
    assert "grey.png" in said[1]
    assert page.read_text() == saved + skipped + shell + run.replace("…\n2", "…\na b own")
    assert not differences(page, second)


@posix
def test_a_block_that_fails_ends_the_page(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```sh\nfalse\ntrue\n```\n")
    with pytest.raises(AssertionError, match="status 1 of\nfalse"):
        differences(tmp_path / "page.md", tmp_path)
    (tmp_path / "examples").unlink()
    (tmp_path / "page.md").write_text("![none](none.png)\n")
    with pytest.raises(AssertionError, match=r"no block makes none\.png"):
        differences(tmp_path / "page.md", tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        ("16 images in 3.1 s, by 1.32.0", "16 images in 9 ms, by 1.23.2", False),  # the unit is a word
        ("16 images in 3.1 s, by 1.32.0", "16 images in 9 s, by 1.23.2", True),
        ("16 images", "15 images", False),
        ("0.0436 RMS", "0.0440 RMS", True),
        ("0.0436 RMS", "0.0480 RMS", False),
        ("4.8e-07 largest", "9.1e-07 largest", True),
        ("4.8e-07 largest", "4.8e-03 largest", False),
        ("3,077,116 bytes", "3,077,900 bytes", True),
        ("3,077,116 bytes", "4,077,116 bytes", False),
        ("within", "BEYOND", False),
        ("1 2", "1", False),
    ],
)
def test_outputs_agree(one: str, other: str, agree: bool) -> None:
    assert same(one, other) == same(other, one) == agree


def test_pictures_agree(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 3), 100, np.uint8)
    for name, change in (("one", 0), ("rounded", 1), ("other", 20)):
        Image.fromarray(pixels + np.uint8(change)).save(tmp_path / f"{name}.png")
    Image.fromarray(pixels[:4]).save(tmp_path / "smaller.png")
    names = ("one", "rounded", "other", "smaller", "missing")
    found = {name: alike(tmp_path / "one.png", tmp_path / f"{name}.png") for name in names}
    assert found == {"one": True, "rounded": True, "other": False, "smaller": False, "missing": False}
