"""What a sampler is given: conditions by name, and axes whose size a call chooses. Everything is checked here, once."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.text import Text

DTYPES = {"float32": "fiu", "int64": "iu", "bool": "b"}  # NumPy's kinds that each may be given as
OUTPUT_NAME = re.compile(r"(?!(seeds|file)$)[^\W\d]\w*")  # names an array beside the seeds
MOST_VALUES = 2**28  # of one sample: 1 GB in float32
CLASSES = "class_labels"  # the condition that class-conditional models share
Shape = tuple[int | str, ...]


def parse_sizes(text: str) -> tuple[int, int, int]:
    """Least, usual and largest of ``8``, which is all of them, or of ``1:4:16``. Raises UserError for anything else."""
    if not re.fullmatch(r"\d+(:\d+:\d+)?", text):
        raise UserError(f"size {text!r} is neither a number nor MIN:OPT:MAX, such as 1:4:16")
    sizes = [int(size) for size in text.split(":")]
    least, usual, largest = sizes if len(sizes) == 3 else sizes * 3
    return least, usual, largest


@dataclass(frozen=True)
class Axis:
    """The sizes that an axis with a name may have. Engines are tuned for ``usual``, and fits use it."""

    least: int
    usual: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.usual <= self.largest:
            raise UserError(
                f"an axis has sizes {self.least}, {self.usual}, {self.largest}; they must be at least 1, and in order"
            )

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.least, self.usual, self.largest

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """``64``, or ``16:64:256``. Raises UserError for anything else."""
        return cls(*parse_sizes(text))


@dataclass(frozen=True)
class Condition:
    """A named input that stays the same at every evaluation of one sample.

    Args:
        shape: of one sample's value. A name in it is an axis, of the same size wherever the name stands.
        dtype: float32, int64 or bool.
        null: the value that means "nothing", which guidance needs: of ``shape``, or one that broadcasts to it.
        choices: values are whole numbers below this, or ``null``; 0: anything goes.
        description: one sentence for people.
        text: how text becomes the value, which is int64 [length] then; None: it is not of text.
    """

    shape: Shape = ()
    dtype: str = "float32"
    null: Any = field(default=None, compare=False)
    choices: int = 0
    description: str = ""
    text: Text | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.choices < 2**63:
            raise UserError(f"a condition has {self.choices} choices; it must be a number from 0 on, below 2^63")
        if self.dtype not in DTYPES:
            raise UserError(f"a condition's dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.text and (self.dtype != "int64" or len(self.shape) != 1 or not isinstance(self.shape[0], int)):
            raise UserError(f"a condition of text is int64 [length], of so many tokens, and not {self.wanted()}")

    def record(self) -> dict[str, Any]:
        """JSON values. Of a null that is no single number, only that there is one."""
        single = isinstance(self.null, int | float)
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "null": self.null if single or self.null is None else True,
            "choices": self.choices,
            "description": self.description,
            **({"text": self.text.record()} if self.text else {}),
        }

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Condition":
        """What ``record`` made. Raises UserError, or one of ``json_file.ODD``, for anything else."""
        return cls(
            tuple(recorded["shape"]),
            recorded["dtype"],
            recorded["null"],
            int(recorded["choices"]),
            str(recorded["description"]),
            Text.read(recorded["text"]) if "text" in recorded else None,
        )

    def wanted(self) -> str:
        """As messages say it: ``int64 []``, ``float32 [length, 80]``, ``text or int64 [77]``."""
        of = f", 0 to {self.choices - 1}{f' or {self.null}' if self.null is not None else ''}" if self.choices else ""
        return f"{'text or ' if self.text else ''}{self.dtype} [{', '.join(map(str, self.shape))}]{of}"


def class_labels(classes: int, null: int | None = -1) -> dict[str, Condition]:
    """The condition of a model with so many classes; none for 0. ``null`` means "no class"; None: nothing does."""
    return {CLASSES: Condition((), "int64", null, classes, "the class of the image")} if classes else {}


@dataclass(frozen=True)
class Inputs:
    """The noise that a sampler starts from, [n, *shape], and its conditions; ``axes`` are those with names."""

    shape: Shape
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for size in (size for shape in self._shapes() for size in shape):
            number = isinstance(size, int | np.integer) and not isinstance(size, bool)
            if not (isinstance(size, str) or (number and 1 <= size <= MOST_VALUES)):
                raise UserError(f"a shape has the size {size!r:.40}; it must be 1 or more, or an axis's name")
        named = {size for shape in self._shapes() for size in shape if isinstance(size, str)}
        if unknown := sorted(named - set(self.axes)):
            raise UserError(f"axis {unknown[0]!r} has no sizes: give its least, usual and largest")
        if clash := sorted(
            set(self.conditions) & ({"x", "sigma", "noise", "batch", "seeds", "temperature", "file"} | set(self.axes))
        ):
            raise UserError(f"a condition is called {clash[0]!r}, which is taken: give it another name")
        for shape in self._shapes():
            if math.prod(self.sized(shape)) > MOST_VALUES:
                raise UserError(f"{list(shape)} are more than {MOST_VALUES} values of one sample")
        for name, condition in self.conditions.items():
            self._check_text(name, condition.text)

    def _check_text(self, name: str, text: Text | None) -> None:
        """Raises UserError for texts that take each other's value in a circle."""
        path = [name]
        while text and text.follows in self.conditions:
            if text.follows in path:
                raise UserError(
                    f"the texts {', '.join(path)} follow each other in a circle: let one of them follow none"
                )
            path.append(text.follows)
            text = self.conditions[text.follows].text

    def _shapes(self) -> Iterable[Shape]:
        return (self.shape, *(condition.shape for condition in self.conditions.values()))

    def sized(self, shape: Shape | None = None, sizes: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """``shape``, by default the data's, in numbers: named axes as in ``sizes``, else of their usual size."""
        sizes = sizes or {}
        wanted = self.shape if shape is None else shape
        return tuple(sizes.get(s, self.axes[s].usual) if isinstance(s, str) else s for s in wanted)

    def record(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "conditions": {name: condition.record() for name, condition in self.conditions.items()},
            "axes": {name: list(axis.sizes) for name, axis in self.axes.items()},
        }

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Inputs":
        """What ``record`` made. Raises UserError, or one of ``json_file.ODD``, for anything else."""
        return cls(
            tuple(recorded["shape"]),
            {name: Condition.read(condition) for name, condition in recorded["conditions"].items()},
            {name: Axis(*map(int, sizes)) for name, sizes in recorded["axes"].items()},
        )

    def check(self, given: Mapping[str, Any], count: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The conditions for ``count`` samples, and the sizes of the axes with names.

        Args:
            given: by name, each condition's value: one for all samples, or [count, …]. A name of an axis, where no
                condition tells its size, gives that size.

        Returns conditions [count, *shape], and a size for each axis. Raises UserError for a name that is missing or
        unknown, a wrong dtype or shape, sizes that disagree or leave their range, NaN, and a choice out of range.
        """
        known = [*self.conditions, *self.axes]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"unknown condition {name!r}{hint}: this sampler takes {', '.join(known) or 'no conditions'}"
                )
        sizes: dict[str, int] = {}
        values = {}
        for name, condition in self.conditions.items():
            if given.get(name) is None:
                raise UserError(f"{name} is missing: pass {name}={condition.wanted()}, one or one for each seed")
            values[name] = self._checked(name, condition, given[name], count, sizes)
        for name in self.axes:
            if given.get(name) is not None:
                self._size(name, given[name], f"{name} is", sizes)
            sizes.setdefault(name, self.axes[name].usual)
        return values, sizes

    def _checked(self, name: str, condition: Condition, given: Any, count: int, sizes: dict[str, int]) -> np.ndarray:
        value = np.asarray(given)
        wanted = f"{name} must be {condition.wanted()}, one or {count}, one for each seed"
        if value.dtype.kind not in DTYPES[condition.dtype]:
            raise UserError(f"{name} is {value.dtype}; {wanted}")
        rank = len(condition.shape)
        if value.ndim not in (rank, rank + 1) or (value.ndim > rank and len(value) not in (1, count)):
            raise UserError(f"{name} has shape {list(value.shape)}; {wanted}")
        for size, axis in zip(value.shape[value.ndim - rank :], condition.shape, strict=True):
            if isinstance(axis, str):
                self._size(axis, size, f"{name} has", sizes)
            elif size != axis:
                raise UserError(f"{name} has shape {list(value.shape)}; {wanted}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{name} holds NaN or infinity")
        if condition.choices and value.size:
            wrong = value[(value < 0) | (value >= condition.choices)]
            wrong = wrong if condition.null is None else wrong[wrong != condition.null]
            if wrong.size:
                raise UserError(f"{name} holds {wrong.flat[0]}, which is out of range; {wanted}")
        value = value.astype(condition.dtype)
        return np.broadcast_to(value, (count, *value.shape[value.ndim - rank :]))

    def _size(self, axis: str, size: Any, says: str, sizes: dict[str, int]) -> None:
        limits = self.axes[axis]
        if not isinstance(size, int | np.integer) or not limits.least <= size <= limits.largest:
            raise UserError(f"{says} {size} of {axis}; this sampler takes {limits.least} to {limits.largest}")
        if sizes.setdefault(axis, int(size)) != size:
            raise UserError(f"{says} {size} of {axis}, and another condition has {sizes[axis]}")


@dataclass(frozen=True)
class Output:
    """What a sampler makes: its name, the shape of one, and the units of its values."""

    name: str = "images"
    shape: Shape = ()
    units: str = "about [-1, 1]"

    def __post_init__(self) -> None:
        if not OUTPUT_NAME.fullmatch(self.name):
            raise UserError(f"an output is called {self.name!r:.40}; it must be a word, and neither seeds nor file")

    @property
    def is_image(self) -> bool:
        """Whether a picture can be drawn of it: grey or colour, [channels, height, width]."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)


def sizes_of(shape: Shape, array_shape: Sequence[int]) -> dict[str, int]:
    """The sizes that an array's shape gives to the names in ``shape``."""
    return {name: size for name, size in zip(shape, array_shape, strict=True) if isinstance(name, str)}
