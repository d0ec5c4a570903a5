"""What the documents say runs, and what they point to is there."""

import argparse
import doctest
import re
from pathlib import Path
from typing import Any

import pytest

from edge_sampler.export import plan_pictures
from edge_sampler.runtime.command_line import COMMANDS
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main
from tests.pages import ROOMS, ROOT, commands, main_of, of_block

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
PROGRAMS = [
    path for room in COMMANDS for path in (ROOT / room).rglob("*.py") if " = Parser(" in path.read_text("utf-8")
]
STAND_INS = {"N": "4", "K": "1", "S": "2", "MIN:OPT:MAX": "1:2:4", "NAME=VALUE": "a=1", "NAME=FILE.npy": "a=1"}
STAND_INS |= {"WRITER": "plan", "HOW": "killed"}


class ParsedError(Exception):
    """The arguments are parsed; nothing more is to be run."""


@pytest.mark.parametrize("page", [*PAGES, *PROGRAMS], ids=lambda page: page.name)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parsers that would run them."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        original(self, *given)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        name, *arguments = (STAND_INS.get(word, word) for word in command.words)
        try:
            run_main(main_of(name), *arguments)
        except (ParsedError, SystemExit):  # the latter of --help
            continue
        except UserError as error:
            if command.is_name and "required" in str(error):
                continue
            raise AssertionError(f"{command.text}: {error}") from error
        raise AssertionError(f"{command.text}: nothing was parsed")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_command_of_a_block_is_overlooked(page: Path) -> None:
    """Or cut short."""
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        code = re.sub(r" # .*", "", block)
        ours = re.findall(rf"-m (?:edge_sampler\.)?(?:{ROOMS})\b|\bedge-sampler |python examples/", code)
        assert len(ours) == len([*of_block(block)]), block


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if ">>>" in page.read_text("utf-8") and page.parent.name != "reference"],  # its own test's
    ids=lambda page: page.name,
)
def test_examples_run(page: Path) -> None:
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for address in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in address:
            continue
        file, _, anchor = address.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), address
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            names = {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}
            assert anchor in names, address


def test_the_tables_of_the_concepts_are_todays(tmp_path: Path) -> None:
    run_main(plan_pictures.main, "--out", str(tmp_path))
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {path.name: path.read_text() for path in (ROOT / "docs" / "concepts").iterdir()}
