"""The reference says all of each function: its arguments, what it returns, what it raises. Its examples run."""

import ast
import dataclasses
import doctest
import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import edge_sampler

PAGES = sorted((Path(__file__).parent.parent / "docs" / "reference").glob("*.md"))
NAMES = [name for page in PAGES for name in re.findall(r"^::: edge_sampler\.(.+)$", page.read_text("utf-8"), re.M)]
ROOMS = {"calibration", "export", "models", "runtime"}
SECTION = re.compile(r"^(Args|Returns|Raises|Examples):\n((?:(?: {4}.*)?\n)+)", re.M)
NEEDS = {"add_engine": "tensorrt_rtx"}


def found(name: str) -> Any:
    module, _, last = f"edge_sampler.{name}".rpartition(".")
    return getattr(import_module(module), last)


def sections(thing: Any) -> dict[str, str]:
    """Those of a docstring in Google's style, by their headings."""
    return {head: textwrap.dedent(body) for head, body in SECTION.findall(f"{inspect.getdoc(thing)}\n")}


def entries(section: str) -> list[str]:
    return [name for names in re.findall(r"^(\w[\w, ]*):", section, re.M) for name in names.split(", ")]


def raised(function: Callable[..., Any]) -> set[str]:
    """The exceptions that a function's own lines raise and do not catch."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    tried = [part for node in ast.walk(tree) if isinstance(node, ast.Try) and node.handlers for part in node.body]
    caught = {node for part in tried for node in ast.walk(part)}
    errors = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node not in caught]
    made = [error.func for error in errors if isinstance(error, ast.Call)]
    return {name.id for name in made if isinstance(name, ast.Name) and name.id[0].isupper()}


def makers(thing: type) -> list[Callable[..., Any]]:
    """What a class's own lines do while one is made."""
    names = ("__post_init__",) if dataclasses.is_dataclass(thing) else ("__init__",)
    known = [vars(thing).get(name) for name in names if not getattr(thing, "_is_protocol", False)]
    return [one for one in known if one]


def members(thing: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public methods of a class and its properties' functions, but not what it has from another."""
    for name, value in vars(thing).items():
        getter = value.fget if isinstance(value, property) else getattr(value, "func", None)
        function = getter if isinstance(value, property | cached_property) else getattr(thing, name)
        if inspect.isroutine(function) and function.__name__ == name != "forward" and not name.startswith("_"):
            yield name, function


def check(thing: Any, signature: inspect.Signature, errors: set[str]) -> None:
    told, where = sections(thing), thing.__qualname__
    assert inspect.getdoc(thing), where
    assert entries(told.get("Args", "")) == [name for name in signature.parameters if name != "self"], where
    assert ("Returns" in told) == (signature.return_annotation not in (None, inspect.Signature.empty)), where
    assert ": " not in told.get("Returns", ""), f"{where}: mkdocstrings takes what is before a colon for a type"
    assert errors <= set(entries(told.get("Raises", ""))), where


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_says_all(name: str) -> None:
    thing = found(name)
    assert ">>>" in sections(thing).get("Examples", "")
    if not inspect.isclass(thing):
        check(thing, inspect.signature(thing), raised(thing))
        return
    has_own = makers(thing) or dataclasses.is_dataclass(thing)
    signature = inspect.signature(thing) if has_own else inspect.Signature()
    check(thing, signature.replace(return_annotation=None), {one for maker in makers(thing) for one in raised(maker)})
    for key, function in members(thing):
        if isinstance(vars(thing)[key], property | cached_property):
            assert inspect.getdoc(function), key
        else:
            check(function, inspect.signature(function), raised(function))
        assert re.search(rf"\.{key}\b", sections(thing)["Examples"]), f"no example of {key}"


def test_all_that_is_exported_is_there_once() -> None:
    assert set(edge_sampler.__all__) - ROOMS <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by itself, after the lines of the reference's first page, in a folder with the bundle that these make."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    known: dict[str, Any] = {}

    def run(text: str, name: str, globs: dict[str, Any]) -> None:
        test = doctest.DocTestParser().get_doctest(text, globs, name, None, 0)
        runner.run(test, clear_globs=False)
        if globs is known:
            known.update(test.globs)

    first = tmp_path / "first"
    first.mkdir()
    monkeypatch.chdir(first)
    run(PAGES[[page.name for page in PAGES].index("index.md")].read_text("utf-8"), "index.md", known)
    for name in NAMES:
        if not find_spec(NEEDS.get(name, "numpy")):
            continue
        monkeypatch.chdir(shutil.copytree(first, tmp_path / name))
        run(sections(found(name))["Examples"], name, dict(known))
    assert not runner.failures, capsys.readouterr().out
    assert runner.tries > len(NAMES)
