"""What the documents say runs, and what they point to is there."""

import argparse
import doctest
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from edge_sampler.export import plan_pictures
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
ROOMS = ("calibration", "export", "models", "runtime")
STAND_INS = {"N": "4", "K": "1", "S": "2", "MIN:OPT:MAX": "1:2:4", "NAME=VALUE": "a=1", "NAME=FILE.npy": "a=1"}


class ParsedError(Exception):
    """The arguments are parsed; nothing more is to be run."""


def commands(page: Path) -> Iterator[str]:
    """Those of ours that a page gives, in blocks or within a sentence, but for those that it cuts short."""
    text = page.read_text("utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose)]
    for line in (*blocks.splitlines(), *spans):
        for part in re.split(r"&&|\||;|\d?>", re.sub(r"\s#\s.*", "", line)):
            found = re.search(r"python -m ((?:edge_sampler\.)?(?:" + "|".join(ROOMS) + r")\b.*)", part)
            if found and "…" not in part:
                yield found[1].strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parsers that would run them."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: Any) -> None:
        original(self, *given)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    for command in dict.fromkeys(commands(page)):
        name, *arguments = (STAND_INS.get(word, word) for word in shlex.split(command))
        name = name.removeprefix("edge_sampler.")
        module = import_module(f"edge_sampler.{name}" if "." in name else f"edge_sampler.{name}.__main__")
        mentioned = all(re.fullmatch("[a-z-]+", word) for word in arguments)  # a command's name alone
        try:
            run_main(module.main, *arguments)
        except (ParsedError, SystemExit):  # the latter of --help
            continue
        except UserError as error:
            if mentioned and "required" in str(error):
                continue
            raise AssertionError(f"{command}: {error}") from error
        raise AssertionError(f"{command}: nothing was parsed")


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
