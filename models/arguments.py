"""Whether an architecture's arguments, as files hold them, are such as networks take: looked at before any is built."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from edge_sampler.models.precond import PRECONDITIONINGS, Preconditioning
from edge_sampler.runtime.errors import UserError, one_line

LARGEST_NUMBER, MOST_BLOCKS, MOST_VALUES = 2**24, 256, 4096  # beyond what any network has
MOST_CLASSES = 2**16  # of ImageNet's largest edition there are 21,841
COUNTS = re.compile("layers|blocks|depth|mult")  # in names of arguments that say how many, or how many times as wide
# Whose 0 says that there is none; other whole numbers count from 1.
MAY_BE_NONE = ("label_dim", "augment_dim", "classes")
MOST_STEPS = 1e6  # of training; published networks have 4,000 at the most
BETWEEN = {  # what arguments of preconditionings have to be between
    "sigma_data": (1e-6, 1e6),
    "beta_d": (0.0, 1e3),
    "beta_min": (0.0, 1e3),
    "epsilon_t": (0.0, 1.0),
    "beta_start": (0.0, 1.0),
    "beta_end": (0.0, 1.0),
    "C_1": (0.0, 1.0),
    "C_2": (0.0, 1.0),
    "M": (1.0, MOST_STEPS),
    "num_train_timesteps": (0.0, MOST_STEPS),
}
OWN: dict[str, Any] = {  # of architectures; all others are arguments of a preconditioning or a network
    "img_resolution": int,
    "img_channels": int,
    "label_dim": int,
    "out_channels": int,
    "patch": int,
    "sigma_min": float,
    "sigma_max": float,
}


def check_plain(value: Any, name: str = "architecture", left: int = MOST_VALUES) -> int:
    """Raises ValueError for arguments that are no plain values or beyond any network's.

    Returns how many of ``left`` values more there may be.
    """
    if left <= 0:
        raise ValueError(f"{name} makes more than {MOST_VALUES} values")
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else ((name, part) for part in value):
            if not isinstance(key, str):
                raise ValueError(f"{name} has a name that is no text")
            left = check_plain(part, key, left - 1)
    elif isinstance(value, int | float):
        most = MOST_BLOCKS if COUNTS.search(name) else MOST_CLASSES if name in MAY_BE_NONE else LARGEST_NUMBER
        if abs(value) > most and not math.isinf(value):
            raise ValueError(f"{name} is larger than {most}, beyond any network's")
    elif not isinstance(value, str | None):
        raise ValueError(f"{name} is a {type(value).__name__}; allowed are texts, numbers and lists of them")
    return left


def check_product(architecture: Mapping[str, Any]) -> None:
    """Raises ValueError where a list of levels times blocks in each makes more than any network has."""
    blocks = [
        int(value) for name, value in architecture.items() if COUNTS.search(name) and isinstance(value, int | float)
    ]
    lengths = [len(value) for value in architecture.values() if isinstance(value, list | tuple)]
    if max(blocks, default=1) * max(lengths, default=1) > MOST_VALUES:
        raise ValueError(f"{max(lengths)} levels of {max(blocks)} blocks make more than {MOST_VALUES}")


def preconditioning_of(precond: str, arguments: Mapping[str, Any]) -> Preconditioning:
    """The one of that name. Raises ValueError for arguments that it cannot have, TypeError for unknown ones."""
    make = PRECONDITIONINGS[precond]
    check_types(arguments, make)
    for name, (least, largest) in BETWEEN.items():
        if name in arguments and not least < arguments[name] < largest:
            raise ValueError(f"{name} is {arguments[name]:g}; it must be above {least:g} and below {largest:g}")
    return make(**arguments)


def check_types(arguments: Mapping[str, Any], wanted: Callable[..., Any] | Mapping[str, Any], least: float = 1) -> None:
    """Raises ValueError for an argument of another type than ``wanted`` says: by name, or by its annotations.

    And for a whole number below ``least``, or below 0 where that says that there is none.
    """
    made = wanted.__init__ if isinstance(wanted, type) else wanted  # type: ignore[misc]
    types = made if isinstance(made, Mapping) else get_type_hints(made)
    for name, value in arguments.items():
        lowest = 0 if name in MAY_BE_NONE else least
        if name in types and not _is(value, types[name], lowest):
            raise ValueError(f"{name} is {one_line(f'{value!r:.40}')}; it must be {_told(types[name], lowest)}")


def check_kinds(arguments: Mapping[str, Any], wanted: Callable[..., Any], least: float = 1) -> None:
    """As ``check_types``, for what a caller gives in Python. Raises UserError."""
    try:
        check_types(arguments, wanted, least)
    except ValueError as error:
        raise UserError(str(error)) from error


def _is(value: Any, wanted: Any, least: float) -> bool:
    """Whether a value is of a type; whole numbers also at least so large, and truth is no number."""
    parts, origin = get_args(wanted), get_origin(wanted)
    if origin in (Union, UnionType):
        return any(_is(value, part, least) for part in parts)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(_is(one, parts[0], least) for one in value)
    if origin is Mapping:
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return named and all(_is(one, parts[1], least) for one in value.values())
    if wanted is int:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least
    if wanted is float:
        return isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return wanted is Any or isinstance(value, origin or wanted)


def _told(wanted: Any, least: float) -> str:
    """A type in words."""
    parts, origin = get_args(wanted), get_origin(wanted)
    if origin in (Union, UnionType):
        return " or ".join(_told(part, least) for part in parts)
    if origin in (tuple, Sequence):
        return f"a list, each {_told(parts[0], least)}"
    if origin is Mapping:
        return f"a mapping of names, each {_told(parts[1], least)}"
    words = {
        int: "a whole number" + f", {least} or more" * math.isfinite(least),
        float: "a number",
        bool: "true or false",
        str: "a text",
        type(None): "null",
    }
    return words.get(wanted, f"an object of class {wanted.__name__}")
