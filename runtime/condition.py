"""A named input of a sampler, and an axis whose size a call chooses."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_sampler.runtime.errors import UserError, is_line
from edge_sampler.runtime.text import Text

DTYPES = {"float32": "fiu", "int64": "iu", "bool": "b"}  # NumPy's kinds that each may be given as
CLASSES = "class_labels"  # the condition that class-conditional models share
MOST_VALUES = 2**28  # of one sample: 1 GB in float32
Shape = tuple[int | str, ...]


def number_of(size: int | str, sizes: Mapping[str, int]) -> int:
    """A size of a shape in numbers, by those of axes."""
    if not isinstance(size, str):
        return size
    times, axis = axis_in(size)
    return times * sizes[axis]


def axis_in(size: str) -> tuple[int, str]:
    """How many times which axis a size is: ``length`` and ``8*length``."""
    times, _, name = size.rpartition("*")
    return (int(times), name) if re.fullmatch(r"[1-9]\d{0,8}", times, re.ASCII) else (1, size)


def sizes_of(shape: Shape, array_shape: Sequence[int]) -> dict[str, int]:
    """The sizes that an array's shape gives to the names in ``shape``."""
    named = [(axis_in(name), size) for name, size in zip(shape, array_shape, strict=True) if isinstance(name, str)]
    return {axis: size // times for (times, axis), size in named}


def parse_sizes(text: str) -> tuple[int, int, int]:
    """Least, usual and largest of ``8``, which is all of them, or of ``1:4:16``. Raises UserError for anything else."""
    if not re.fullmatch(r"\d{1,99}(:\d{1,99}:\d{1,99})?", text):
        raise UserError(f"size {text!r} is neither a number nor MIN:OPT:MAX, such as 1:4:16")
    sizes = [int(size) for size in text.split(":")]
    least, usual, largest = sizes if len(sizes) == 3 else sizes * 3
    return least, usual, largest


@dataclass(frozen=True)
class Axis:
    """The sizes that an axis with a name may have.

    Args:
        least: the smallest size, 1 or more.
        usual: the size for fits, and for which engines are tuned.
        largest: the largest size, at most 2^28.
        step: sizes are multiples of it. A network that halves its input three times takes steps of 8.

    Raises:
        UserError: if they are no whole numbers, too large, not in order, or no multiples.

    Examples:
        >>> from edge_sampler.runtime.condition import Axis
        >>> Axis.parse("16:64:256").sizes
        (16, 64, 256)
        >>> axis = Axis(16, 64, 256, step=8)
        >>> print(axis)
        16 to 256 in steps of 8
        >>> axis.takes(100), axis.record(), Axis.read([16, 64, 256, 8]) == axis
        (False, [16, 64, 256, 8], True)
    """

    least: int
    usual: int
    largest: int
    step: int = 1

    def __post_init__(self) -> None:
        if any(type(number) is int and number > MOST_VALUES for number in (*self.sizes, self.step)):
            raise UserError(f"an axis has a size or a step above {MOST_VALUES}, beyond what one sample may have")
        told = f"an axis has sizes {self.least!r:.40}, {self.usual!r:.40}, {self.largest!r:.40}"
        if not all(type(number) is int for number in (*self.sizes, self.step)):
            raise UserError(f"{told} and a step of {self.step!r:.40}; they must be whole numbers")
        if not 1 <= self.least <= self.usual <= self.largest:
            raise UserError(f"{told}; they must be at least 1, and in order")
        if self.step < 1 or any(size % self.step for size in self.sizes):
            raise UserError(f"{told} and a step of {self.step}; they must be multiples of it")

    def __str__(self) -> str:
        return f"{self.least} to {self.largest}" + f" in steps of {self.step}" * (self.step > 1)

    def takes(self, size: Any) -> bool:
        """Whether it may have this size.

        Args:
            size: whatever a caller gave.

        Returns:
            True for a whole number in the range that is a multiple of the step.
        """
        whole = isinstance(size, int | np.integer)
        return bool(whole and self.least <= size <= self.largest and size % self.step == 0)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Least, usual and largest."""
        return self.least, self.usual, self.largest

    def record(self) -> list[int]:
        """As a manifest holds it.

        Returns:
            The sizes, and the step where it is not 1.
        """
        return [*self.sizes, *[self.step] * (self.step > 1)]

    @classmethod
    def read(cls, recorded: Any) -> "Axis":
        """The axis of a manifest, or of a caller.

        Args:
            recorded: what ``record`` made, or a tuple of such numbers.

        Returns:
            The axis.

        Raises:
            UserError: for anything else.
        """
        if not isinstance(recorded, list | tuple) or len(recorded) not in (3, 4):
            raise UserError(
                f"an axis has {recorded!r:.40}; it needs its least, usual and largest size, and its step where there "
                "is one, such as (64, 64, 256, 8)"
            )
        return cls(*(int(number) if isinstance(number, np.integer) else number for number in recorded))

    @classmethod
    def parse(cls, text: str) -> "Axis":
        """An axis as command lines have it.

        Args:
            text: ``64``, or ``16:64:256``.

        Returns:
            The axis.

        Raises:
            UserError: for anything else.
        """
        return cls(*parse_sizes(text))


@dataclass(frozen=True)
class Condition:
    """A named input that stays the same at every evaluation of one sample.

    Args:
        shape: the shape of one sample's value. A name in it is an axis, with the same size wherever the name occurs,
            and "8*name" eight times its size.
        dtype: float32, int64 or bool.
        null: the value that means "nothing", which guidance needs. It has ``shape``, or broadcasts to it.
        choices: values are whole numbers below this, or ``null``, of which fits draw any; 0: no limit.
        description: one sentence for people.
        text: how text becomes the value, int64 [length]; None: the condition is not a text.
        ids: values are whole numbers below this, or ``null``: the rows of a table that they are looked up in; 0: no
            limit. Exports find those of ``torch.nn.Embedding``.

    Raises:
        UserError: for another dtype, for choices or ids below 0, for a description that is no line of text, and for a
            text of another shape or dtype.

    Examples:
        >>> label = edge_sampler.Condition((), "int64", null=-1, choices=10, description="the class of the image")
        >>> label.wanted()
        'int64 [], 0 to 9 or -1'
        >>> edge_sampler.Condition.read(label.record()) == label
        True
        >>> edge_sampler.Condition(("length",), "int64", ids=1000).wanted()
        'int64 [length], 0 to 999'
        >>> label.limit, label.is_label
        (10, True)
    """

    shape: Shape = ()
    dtype: str = "float32"
    null: Any = field(default=None, compare=False)
    choices: int = 0
    description: str = ""
    text: Text | None = None
    ids: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.shape, str) or not isinstance(self.shape, Sequence | np.ndarray):
            raise UserError(f"a condition's shape is {self.shape!r:.40}; it must be a tuple, such as (5,)")
        object.__setattr__(self, "shape", tuple(int(s) if isinstance(s, np.integer) else s for s in self.shape))
        if getattr(self.null, "shape", None) == ():  # a number of NumPy's or PyTorch's
            object.__setattr__(self, "null", self.null.item())
        if not is_line(self.description):
            raise UserError(f"a condition's description is {self.description!r:.40}; it must be a line of text")
        for name, number in (("choices", self.choices), ("ids", self.ids)):
            if type(number) is not int or not 0 <= number < 2**63:
                raise UserError(f"a condition has {number!r:.40} {name}; it must be a number from 0 on, below 2^63")
        if self.dtype not in DTYPES:
            raise UserError(f"a condition's dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.text and (self.dtype != "int64" or len(self.shape) != 1 or not isinstance(self.shape[0], int)):
            raise UserError(f"a condition of text is int64 [length], of so many tokens, and not {self.wanted()}")

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values. Of a null that is no single number, only that there is one.
        """
        single = isinstance(self.null, int | float)
        null = int(self.null) if isinstance(self.null, bool) else self.null
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "null": null if single or null is None else True,
            "choices": self.choices,
            "description": self.description,
            **({"text": self.text.record()} if self.text else {}),
            **({"ids": self.ids} if self.ids else {}),
        }

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Condition":
        """The condition of a manifest.

        Args:
            recorded: what ``record`` made.

        Returns:
            The condition.

        Raises:
            UserError: for anything else, or one of ``json_file.ODD``.
        """
        return cls(
            tuple(recorded["shape"]),
            recorded["dtype"],
            recorded["null"],
            int(recorded["choices"]),
            str(recorded["description"]),
            Text.read(recorded["text"]) if "text" in recorded else None,
            int(recorded.get("ids", 0)),
        )

    @property
    def is_label(self) -> bool:
        """Whether it is one of ``choices``, and no array of them."""
        return self.choices > 0 and self.shape == ()

    @property
    def limit(self) -> int:
        """Values are whole numbers below it, or ``null``; 0: no limit."""
        return min(filter(None, (self.choices, self.ids)), default=0)

    def wanted(self) -> str:
        """As messages say it.

        Returns:
            ``int64 []``, ``float32 [length, 80]``, ``text or int64 [77]``.
        """
        apart = isinstance(self.null, int | float) and not 0 <= self.null < self.limit
        of = f", 0 to {self.limit - 1}{f' or {self.null}' if apart else ''}" if self.limit else ""
        return f"{'text or ' if self.text else ''}{self.dtype} [{', '.join(map(str, self.shape))}]{of}"


def array_of(given: Any) -> np.ndarray:
    """As NumPy reads it. Raises what that raises, and TypeError for booleans among numbers: NumPy makes 1 of True."""
    value = np.asarray(given)
    if value.dtype.kind != "b" and _holds_boolean(given):
        raise TypeError("booleans among numbers")
    return value


def _holds_boolean(given: Any) -> bool:
    if isinstance(given, list | tuple):
        return any(map(_holds_boolean, given))
    return isinstance(given, bool | np.bool_)


def label_of(conditions: Mapping[str, Condition]) -> tuple[str, int] | None:
    """The name of the one condition, where it is a label, and how many rows a table has with one for each value.

    ``null`` is a row too: one of its own, the last, where it is -1 or ``choices``. None: there is no such condition.
    """
    if len(conditions) != 1:
        return None
    ((name, one),) = conditions.items()
    null = 0 if one.null is None else one.null
    if not one.is_label or one.dtype != "int64" or not -1 <= null <= one.choices:
        return None
    return name, one.choices + (null in (-1, one.choices))


def class_labels(classes: int, null: int | None = -1) -> dict[str, Condition]:
    """The condition of a model with so many classes; none for 0. ``null`` means "no class"; None: nothing does."""
    return {CLASSES: Condition((), "int64", null, classes, "the class of the image")} if classes else {}
