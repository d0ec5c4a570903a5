"""What a sampler is given, and what it makes. Every value that comes in is checked here, once."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_sampler.runtime.condition import DTYPES, MOST_VALUES, Axis, Condition, Shape, array_of, axis_in, number_of
from edge_sampler.runtime.errors import UserError, is_line
from edge_sampler.runtime.text import Text

FLOAT_IMAGES = "images_float32"  # what sampler.onnx calls its float images where its output is uint8
OF_GRAPHS = ("x", "sigma", "noise", FLOAT_IMAGES)
OF_CALLS = ("self", "seeds", "seed", "batch", "temperature", "binary_data_output", "file", "allow_pickle")
TAKEN = (*OF_GRAPHS, *OF_CALLS)  # by graphs, and by functions, requests and records
VALUES = re.compile(r"(x|denoised)_\d+")  # of evaluations: tools look these up in a graph
WORDS = re.compile(r"[^\W\d]\w*(\.\w+)*")  # what a condition may be called: policies have observation.state


@dataclass(frozen=True)
class Inputs:
    """A sampler's inputs: noise and conditions.

    Args:
        shape: the shape of one sample's noise. A name in it is an axis.
        conditions: the conditions by name.
        axes: the sizes of each named axis.

    Raises:
        UserError: for an axis without sizes, a name that is no word or is taken, a shape of more than 2^28 values, a
            null that is no value, and a text that follows itself.

    Examples:
        >>> from edge_sampler.runtime.condition import Axis
        >>> from edge_sampler.runtime.inputs import Inputs
        >>> mask = edge_sampler.Condition(("length",), "bool")
        >>> inputs = Inputs(("length", 80), {"mask": mask}, {"length": Axis(16, 64, 256)})
        >>> inputs.sized(), Inputs.read(inputs.record()) == inputs
        ((64, 80), True)
        >>> values, sizes = inputs.check({"mask": np.ones(20, bool)}, count=2)
        >>> values["mask"].shape, sizes
        ((2, 20), {'length': 20})
        >>> inputs.check_output(edge_sampler.Output("audio", ("256*length",)))
        >>> inputs.sized(("256*length",), sizes)
        (5120,)
    """

    shape: Shape
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    axes: Mapping[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for size in (size for shape in self._shapes() for size in shape):
            number = isinstance(size, int | np.integer) and not isinstance(size, bool)
            if not (isinstance(size, str) or (number and 1 <= size <= MOST_VALUES)):
                raise UserError(f"a shape has the size {size!r:.40}; it must be 1 to {MOST_VALUES}, or an axis's name")
        named = {axis_in(size)[1] for shape in self._shapes() for size in shape if isinstance(size, str)}
        for kind, names, fits in (
            ("an axis", self.axes, str.isidentifier),
            ("a condition", self.conditions, WORDS.fullmatch),
        ):
            if odd := sorted(name for name in names if not fits(name)):
                raise UserError(f"{kind} is called {odd[0]!r:.40}; it must be a word")
            if clash := sorted(filter(is_taken, names)):
                raise UserError(f"{kind} is called {clash[0]!r}, which is taken: give it another name")
        if odd := [size for size in self.shape if isinstance(size, str) and axis_in(size)[1] != size]:
            raise UserError(f"the data's shape has {odd[0]!r}; only conditions and outputs have multiples of an axis")
        if unknown := sorted(named - set(self.axes)):
            raise UserError(f"axis {unknown[0]!r} has no sizes: give its least, usual and largest")
        if clash := sorted({*self.conditions} & {*self.axes}):
            raise UserError(f"a condition is called {clash[0]!r}, as an axis is: give it another name")
        self._check_count({})
        for name, condition in self.conditions.items():
            self._check_text(name, condition.text)
            self._check_null(name, condition)

    def _check_count(self, sizes: Mapping[str, int]) -> None:
        """Raises UserError where these sizes of axes make too many values of one sample."""
        for shape in self._shapes():
            if math.prod(numbers := self.sized(shape, sizes)) > MOST_VALUES:
                raise UserError(f"{list(numbers)} are more than {MOST_VALUES} values of one sample")

    def _check_null(self, name: str, condition: Condition) -> None:
        """Raises UserError for a null that is no value of the condition."""
        shape, null = self.sized(condition.shape), 0 if condition.null is None else condition.null
        try:
            values = np.broadcast_to(np.asarray(null, float), shape)
        except UserError:  # an array, of which a bundle holds only that there is one: it tells whoever needs it
            return
        except (TypeError, ValueError, OverflowError) as error:
            told = f"{condition.dtype} of shape {shape}"
            raise UserError(f"condition {name} has a null {null!r:.40}, which is no {told}") from error
        if not np.isfinite(values).all():
            raise UserError(f"condition {name} has a null of NaN or infinity: take what the network can be told")
        if beyond(values, condition.dtype).any():
            raise UserError(f"condition {name} has a null {null!r:.40}, which is no {condition.dtype}")

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
        """A shape in numbers.

        Args:
            shape: with names of axes in it; None: the data's.
            sizes: of axes, by name; one that is not there has its usual size.

        Returns:
            As many whole numbers.
        """
        known = {name: axis.usual for name, axis in self.axes.items()} | dict(sizes or {})
        return tuple(number_of(size, known) for size in (self.shape if shape is None else shape))

    def check_output(self, output: "Output") -> None:
        """Holds an output's shape against these axes.

        Args:
            output: what a sampler makes.

        Raises:
            UserError: for an axis that has no sizes, and for too many values.
        """
        for size in output.shape:
            if isinstance(size, str) and (axis := axis_in(size)[1]) not in self.axes:
                known = ", ".join(self.axes) or "none"
                raise UserError(f"the output's shape names {axis!r}; the axes that have sizes are: {known}")
        replace(self, shape=self.sized(output.shape))  # which checks the numbers

    def record(self) -> dict[str, Any]:
        """As a manifest holds it.

        Returns:
            JSON values.
        """
        return {
            "shape": list(self.shape),
            "conditions": {name: condition.record() for name, condition in self.conditions.items()},
            "axes": {name: axis.record() for name, axis in self.axes.items()},
        }

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "Inputs":
        """The inputs of a manifest.

        Args:
            recorded: what ``record`` made.

        Returns:
            The inputs.

        Raises:
            UserError: for anything else, or one of ``json_file.ODD``.
        """
        return cls(
            tuple(recorded["shape"]),
            {name: Condition.read(condition) for name, condition in recorded["conditions"].items()},
            {name: Axis.read(sizes) for name, sizes in recorded["axes"].items()},
        )

    def check(self, given: Mapping[str, Any], count: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """The conditions for ``count`` samples, and the sizes of the axes with names.

        Args:
            given: by name, each condition's value: one for all samples, or [count, …]. A name of an axis, where no
                condition tells its size, gives that size.
            count: of samples.

        Returns:
            Conditions by name, [count, *shape], and a size for each axis.

        Raises:
            UserError: for a name that is missing or unknown, a wrong dtype or shape, sizes that disagree, leave their
                range or make too many values, NaN, a number beyond the dtype, and a choice out of range.
        """
        known = [*self.conditions, *self.axes]
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise UserError(
                    f"unknown condition {name!r}{hint}: this sampler takes {', '.join(known) or 'no conditions'}"
                )
        values, sizes = dict[str, np.ndarray](), dict[str, int]()
        for name, condition in self.conditions.items():
            if given.get(name) is None:
                raise UserError(
                    f"{name} is missing: give {condition.wanted()}, one or one for each seed (--condition {name}=…)"
                )
            values[name] = self._checked(name, condition, given[name], count, sizes)
        for name in self.axes:
            if given.get(name) is not None:
                self._size(name, given[name], f"{name} is {given[name]}", sizes)
            sizes.setdefault(name, self.axes[name].usual)
        self._check_count(sizes)
        return values, sizes

    def _checked(self, name: str, condition: Condition, given: Any, count: int, sizes: dict[str, int]) -> np.ndarray:
        wanted = f"{name} must be {condition.wanted()}, one or {count}, one for each seed"
        try:
            value = array_of(given)
        except ValueError as error:
            raise UserError(f"{name} has rows of several lengths; {wanted}") from error
        except (RuntimeError, TypeError) as error:  # a tensor with gradients, or of a type that NumPy has not
            raise UserError(f"{name} is no array that NumPy reads ({error}); {wanted}") from error
        if np.ma.is_masked(given):
            raise UserError(f"{name} has masked entries: fill them; {wanted}")
        if value.dtype.kind not in DTYPES[condition.dtype]:
            raise UserError(f"{name} is {value.dtype}; {wanted}")
        rank = len(condition.shape)
        if value.ndim not in (rank, rank + 1) or (value.ndim > rank and len(value) not in (1, count)):
            raise UserError(f"{name} has shape {list(value.shape)}; {wanted}")
        for size, axis in zip(value.shape[value.ndim - rank :], condition.shape, strict=True):
            if isinstance(axis, str):
                times, of = axis_in(axis)
                if size % times:
                    raise UserError(f"{name} has {size} of {axis}, which is no multiple of {times}")
                multiple = f", which is {of} {size // times}" * (times > 1)
                self._size(of, size // times, f"{name} has {size} of {axis}{multiple}", sizes)
            elif size != axis:
                raise UserError(f"{name} has shape {list(value.shape)}; {wanted}")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise UserError(f"{name} holds NaN or infinity")
        if condition.limit and value.size:
            wrong = value[(value < 0) | (value >= condition.limit) | (value != np.floor(value))]
            wrong = wrong if condition.null is None else wrong[wrong != condition.null]
            if wrong.size:
                raise UserError(f"{name} holds {wrong.flat[0]}, which is out of range; {wanted}")
        if (wrong := value[beyond(value, condition.dtype)]).size:
            raise UserError(f"{name} holds {wrong.flat[0]}, which is beyond {condition.dtype}")
        value = value.astype(condition.dtype)
        return np.broadcast_to(value, (count, *value.shape[value.ndim - rank :]))

    def _size(self, axis: str, size: Any, says: str, sizes: dict[str, int]) -> None:
        limits = self.axes[axis]
        if not limits.takes(size):
            raise UserError(f"{says}; this sampler takes {limits}")
        if sizes.setdefault(axis, int(size)) != size:
            raise UserError(f"{says}, and another condition has {sizes[axis]}")


@dataclass(frozen=True)
class Output:
    """A sampler's output.

    Args:
        name: a word, which names the graph's output.
        shape: the shape of one sample. A name in it is an axis, and "8*name" eight times its size.
        units: the unit of its values, for people.

    Raises:
        UserError: for a name that is no word, or taken, and for units that are no line of text.

    Examples:
        >>> edge_sampler.Output("actions", (16, 2), "m").is_image
        False
    """

    name: str = "images"
    shape: Shape = ()
    units: str = "about [-1, 1]"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise UserError(f"an output is called {self.name!r:.40}; it must be a word")
        if is_taken(self.name):
            raise UserError(f"an output is called {self.name!r:.40}, which is taken: give it another name")
        if not is_line(self.units):
            raise UserError(f"an output's units are {self.units!r:.40}; they must be a line of text")

    @property
    def is_image(self) -> bool:
        """Whether a picture can be drawn of it: grey or colour, [channels, height, width]."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)


def is_taken(name: str) -> bool:
    """Whether graphs or functions have something of that name."""
    return name in TAKEN or bool(VALUES.fullmatch(name))


def beyond(values: np.ndarray, dtype: str) -> np.ndarray:
    """Which of the values that type cannot hold; a float32 holds a number near to it."""
    with np.errstate(over="ignore", invalid="ignore"):
        held = values.astype(dtype)
    return ~np.isfinite(held) if dtype == "float32" else held != values
