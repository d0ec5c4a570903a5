"""The code of a user's own network: another code is another network, though a few answers may be the same."""

import inspect
import io
import os
import sysconfig
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.checkpoint import weights_sha256

LIBRARIES = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib"))
MEANS_NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
OURS = __name__.partition(".")[0]
PLAIN = (type(None), int, float, complex, str, np.generic, np.ndarray, Tensor, torch.dtype)
WRAPPED = (MethodType, staticmethod, classmethod)


def code_of(*networks: nn.Module) -> str:
    """SHA-256 of the sources of their classes, and of the own functions, classes and values that those use.

    Comments do not count, nor does what nothing uses. Of installed libraries only the names count of what is used. Of
    the networks' attributes functions count, such as hooks.
    """
    found, seen = list[str](), dict[int, Any]()
    open_ends = [part for network in networks for part in parts_of(network)]
    while open_ends:
        name, value = open_ends.pop()
        found.append(f"{name}: {told(value)}")
        if not isinstance(value, PLAIN) and id(value) not in seen:
            seen[id(value)] = value  # kept, so that no other gets its id
            open_ends += used_by(name, value)
    return sha256(repr(sorted(set(found))).encode()).hexdigest()


def parts_of(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """Its modules' classes, and attributes that are functions."""
    for name, module in network.named_modules():
        yield name, type(module)
        for key, value in vars(module).items():
            held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
            yield from ((f"{name}.{key}", one) for one in held if callable(one) and not isinstance(one, nn.Module))


def told(value: Any) -> str:
    """What the value is, without what it is made of."""
    if isinstance(value, Tensor):
        return weights_sha256({"": value})
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return sha256(value.tobytes()).hexdigest()
    if isinstance(value, str):
        return repr(value) if os.sep not in value else "a path"  # which tells of a machine
    if isinstance(value, PLAIN):
        return repr(value.item() if isinstance(value, np.generic) else value)
    if isinstance(value, type | FunctionType) and is_own(value):  # whatever its file was imported as
        return f"{value.__qualname__} {words_of(value)}"
    named = value if isinstance(value, type | FunctionType | BuiltinFunctionType) else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def words_of(one: type | FunctionType) -> list[str]:
    """Its source, word by word; empty where it has none, since it was typed in."""
    try:
        source = inspect.getsource(one)
    except (OSError, TypeError):
        return []
    try:
        words = list(tokenize.generate_tokens(io.StringIO(source.lstrip()).readline))
    except (SyntaxError, tokenize.TokenError):  # of a lambda within a call
        return source.split()
    return [word.string.strip() or tokenize.tok_name[word.type] for word in words if word.type not in MEANS_NOTHING]


def is_own(one: Any) -> bool:
    """Whether a class, function or module is neither a library's nor ours."""
    module = one.__name__ if isinstance(one, ModuleType) else one.__module__ or ""
    if module.partition(".")[0] == OURS:
        return False
    try:
        path = Path(inspect.getfile(one)).resolve()
    except (OSError, TypeError):  # it is built in, or was typed in
        return module == "__main__"
    return not any(path.is_relative_to(folder) for folder in LIBRARIES)


def used_by(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a value is made of, and what a class's and a function's code refers to."""
    if "__wrapped__" in getattr(value, "__dict__", ()):
        yield name, value.__wrapped__
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key}", one) for key, one in value.items() if isinstance(key, str))
    elif isinstance(value, list | tuple):
        yield from ((f"{name}.{place}", one) for place, one in enumerate(value))
    elif isinstance(value, partial):
        yield from ((name, value.func), (name, value.args), (name, value.keywords))
    elif isinstance(value, WRAPPED):
        yield name, value.__func__
    elif isinstance(value, property):
        yield name, value.fget
    elif isinstance(value, type) and is_own(value):
        yield from ((name, base) for base in value.__bases__)
        yield from ((f"{name}.{key}", one) for key, one in vars(value).items() if counts(key, one))
    elif isinstance(value, FunctionType) and is_own(value):
        yield from used_by_function(value)
    elif not isinstance(value, type | ModuleType) and is_own(type(value)) and hasattr(value, "__dict__"):
        yield name, type(value)
        yield from ((f"{name}.{key}", one) for key, one in vars(value).items())


def counts(key: str, value: Any) -> bool:
    """Whether an attribute of a class is one that a person wrote."""
    return isinstance(value, (FunctionType, *WRAPPED)) or not (key.startswith("__") and key.endswith("__"))


def used_by_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    names, known = set(names_in(function.__code__)), function.__globals__
    for name in sorted(names & set(known)):
        value = known[name]
        if not isinstance(value, ModuleType):
            yield name, value
        elif is_own(value):
            yield from ((f"{name}.{key}", vars(value)[key]) for key in sorted(names & set(vars(value))))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is empty
            yield f"{function.__qualname__}.{name}", cell.cell_contents
    yield f"{function.__qualname__}()", [*(function.__defaults__ or ()), function.__kwdefaults__]


def names_in(code: CodeType) -> Iterator[str]:
    """That it and functions within it refer to."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)
