"""The code of a user's own network: another code is another network, though a few answers may be the same."""

import dis
import inspect
import io
import linecache
import sys
import sysconfig
import tokenize
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache, partial, partialmethod
from hashlib import sha256
from pathlib import Path
from site import getsitepackages, getusersitepackages
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.checkpoint import weights_sha256

INSTALLED = (*map(sysconfig.get_path, ("purelib", "platlib", "stdlib")), *getsitepackages(), getusersitepackages())
LIBRARIES = tuple(Path(folder).resolve() for folder in INSTALLED)
MEANS_NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
OURS = __name__.partition(".")[0]
PLAIN = (type(None), int, float, complex, str, np.generic, np.ndarray, Tensor, torch.dtype)
WRAPPED = (MethodType, staticmethod, classmethod)
DEPTH = 4  # of modules within modules
MOST = 20_000  # values that are read: who uses more of them holds data
Named = Iterator[tuple[str, Any]]


def code_of(*networks: nn.Module) -> str:
    """SHA-256 of their classes' functions and values, and of the own functions, classes and values that those use.

    Functions count by their sources, but for comments; where these are others since, by what Python made of them. What
    nothing uses does not count. Of installed libraries only the names count of what is used. Of the networks'
    attributes functions count, such as hooks.
    """
    found, seen = list[str](), dict[int, Any]()
    open_ends = [part for network in networks for part in parts_of(network)]
    while open_ends and len(found) < MOST:
        name, value = open_ends.pop()
        with suppress(Exception):  # whatever somebody's class raises
            found.append(f"{name}: {told(value)}")
            if not isinstance(value, PLAIN) and id(value) not in seen:
                seen[id(value)] = value  # kept, so that no other gets its id
                open_ends += used_by(name, value)
    return sha256(repr(sorted(set(found))).encode()).hexdigest()


def parts_of(network: nn.Module) -> Named:
    """Its modules' classes, what libraries' modules were made with, and attributes that are functions."""
    for name, module in network.named_modules():
        made_with = "" if is_own(type(module)) else module.extra_repr()
        yield f"{name}({made_with})", type(module)
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
        return "a text"  # which may tell of a machine, or of a run
    if isinstance(value, PLAIN):
        return repr(value.item() if isinstance(value, np.generic) else value)
    named = value if isinstance(value, type | FunctionType | BuiltinFunctionType) else type(value)
    if not is_own(named):
        return f"{named.__module__}.{named.__qualname__}"
    written = words_of(named.__code__) if isinstance(named, FunctionType) else []
    return f"{named.__qualname__} {written}"  # whatever its file was imported as


def words_of(code: CodeType) -> Any:
    """A function's source, word by word; where that is another one now, or there is none, what Python made of it."""
    if not is_as_written(code):
        return bytecode_of(code)
    source = inspect.getsource(code)
    try:
        words = list(tokenize.generate_tokens(io.StringIO(source.lstrip()).readline))
    except (SyntaxError, tokenize.TokenError):  # of a lambda within a call
        return source.split()
    return [word.string.strip() or tokenize.tok_name[word.type] for word in words if word.type not in MEANS_NOTHING]


def is_as_written(code: CodeType) -> bool:
    """Whether its file, as it is now, holds it."""
    linecache.checkcache(code.co_filename)
    try:
        made = compiled(code.co_filename, "".join(linecache.getlines(code.co_filename)))
    except (SyntaxError, ValueError):
        return False
    there = [one for one in codes_in(made) if one.co_firstlineno == code.co_firstlineno]
    return any(bytecode_of(one) == bytecode_of(code) for one in there)


@lru_cache(1024)
def compiled(name: str, text: str) -> CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as Python had them said when it loaded the file
        return compile(text, name, "exec", dont_inherit=True)


def bytecode_of(code: CodeType) -> list[Any]:
    """What it does, and names and constants that it does it with."""
    held: list[Any] = []
    for one in code.co_consts:
        if isinstance(one, CodeType):
            held.append(bytecode_of(one))
        else:
            held.append(sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one))
    return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, held]


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


def used_by(name: str, value: Any) -> Named:
    """What a value is made of, and what a class's and a function's code refers to."""
    attributes = getattr(value, "__dict__", {})
    if "__wrapped__" in attributes:
        yield name, attributes["__wrapped__"]
    if isinstance(value, Mapping):
        yield from ((f"{name}.{key if isinstance(key, PLAIN) else told(key)}", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{name}.{place}", one) for place, one in enumerate(value))
    elif isinstance(value, set | frozenset | deque):
        yield from ((name, one) for one in value)
    elif isinstance(value, partial | partialmethod):
        yield from ((name, value.func), (name, value.args), (name, value.keywords))
    elif isinstance(value, WRAPPED):
        yield name, value.__func__
    elif isinstance(value, property | cached_property):
        yield name, value.fget if isinstance(value, property) else value.func
    elif isinstance(value, nn.Module):
        yield from parts_of(value)
        yield f"{name}'s weights", value.state_dict()
    elif isinstance(value, type) and is_own(value):
        yield from ((name, base) for base in value.__bases__)
        yield from ((f"{name}.{key}", one) for key, one in attributes.items() if counts(key, one))
    elif isinstance(value, FunctionType) and is_own(value):
        yield from used_by_function(value)
    elif isinstance(value, SimpleNamespace) or (not isinstance(value, type | ModuleType) and is_own(type(value))):
        yield name, type(value)
        yield from ((f"{name}.{key}", one) for key, one in attributes.items())


def counts(key: str, value: Any) -> bool:
    """Whether an attribute of a class is one that a person wrote."""
    return isinstance(value, (FunctionType, *WRAPPED)) or not (key.startswith("__") and key.endswith("__"))


def used_by_function(function: FunctionType) -> Named:
    reads = {name for code in codes_in(function.__code__) for name in code.co_names}
    known = {**sys.modules, **function.__globals__}
    for name in sorted({name for code in codes_in(function.__code__) for name in globals_in(code)} & set(known)):
        yield from used_of(name, known[name], reads)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it is empty
            yield f"{function.__qualname__}.{name}", cell.cell_contents
    yield f"{function.__qualname__}()", [*(function.__defaults__ or ()), function.__kwdefaults__]


def used_of(name: str, value: Any, reads: set[str], depth: int = 0) -> Named:
    """A value of that name; of an own module what has one of the names that code ``reads``."""
    if not isinstance(value, ModuleType):
        yield name, value
    elif is_own(value) and depth < DEPTH:
        for key in sorted(reads & set(vars(value))):
            yield from used_of(f"{name}.{key}", vars(value)[key], reads, depth + 1)


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """It, and those of functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def globals_in(code: CodeType) -> Iterator[str]:
    """The names of other values that it refers to, and of modules that it imports; not those of attributes."""
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"):
            yield one.argval
