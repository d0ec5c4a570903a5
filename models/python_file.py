"""FILE.py:FUNCTION, a function of the user's: found, and called as in its file. The file is run."""

import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

NAME = re.compile(r"(.+\.py):(\w+)")
ROOMS = Path(__file__).resolve().parents[1]  # the folder that holds this one


def is_named(model: str) -> bool:
    return NAME.fullmatch(model) is not None


def name_of(model: str) -> str:
    """``mine`` of ``mine.py:make``, and ``mine-small`` of ``mine.py:small``."""
    path, _, function = model.rpartition(":")
    return Path(path).stem + f"-{function}" * (function != "make")


def load(model: str) -> Denoiser:
    """What FILE.py:FUNCTION makes, called as the file is. The file is run.

    Raises UserError where file or function is missing, or makes something else.
    """
    function, _ = file_and_function(model)
    made = function()
    if not isinstance(made, Denoiser):
        raise UserError(f"{model} made a {type(made).__name__}; it should return what edge_sampler.adapt returns")
    made.spec = replace(made.spec, name=name_of(model))
    return made


def file_and_function(name: str) -> tuple[Callable[..., Any], bytes]:
    """The function that FILE.py:FUNCTION names, to be called as in that file, and what tells it from another: the
    file's bytes and the function's name. The file is run.

    Raises UserError where file or function is missing, and whatever the function raises as one.
    """
    match = NAME.fullmatch(name)
    assert match
    path, function = Path(match[1]), match[2]
    if not path.is_file():
        raise UserError(f"no file {path}, of which {function} is wanted")
    spec = importlib.util.spec_from_file_location(f"edge_sampler_model_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its types
    with as_a_file(path, name):
        content = path.read_bytes()
        spec.loader.exec_module(module)
        called = getattr(module, function, None)
    if not callable(called):
        raise UserError(f"{path} has no function {function}")

    def as_there(*arguments: Any) -> Any:
        with as_a_file(path, name):
            return called(*arguments)

    return as_there, content + function.encode()


@contextmanager
def as_a_file(path: Path, name: str) -> Iterator[None]:
    """The file's neighbours come first, and what goes wrong is told as a UserError of ``name``."""
    try:
        with neighbours_first(path.parent.resolve()):
            yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a user's code may raise
        lines = traceback.format_exception_only(error)  # a SyntaxError's begin with the code, indented
        told = next(line for line in lines if not line.startswith(" "))
        raise UserError(f"{name} failed: {told.splitlines()[0]}") from error


@contextmanager
def neighbours_first(folder: Path) -> Iterator[None]:
    """``folder`` comes first on sys.path, as when a file of it is run.

    A checkout of this project is not on it: its folder ``models`` would hide a user's own that has no __init__.py.
    """
    before = sys.path[:]
    sys.path[:] = [str(folder), *(entry for entry in before if Path(entry).resolve() != ROOMS)]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry not in (*before, str(folder))), *before]
