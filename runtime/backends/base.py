"""What every backend offers: the same verbs, whatever the engine library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError


@dataclass(frozen=True)
class Spans:
    """Seconds of one run on a GPU, by its own clock."""

    host_to_device: float
    compute: float
    device_to_host: float


class Session(Protocol):
    """A sampler, loaded; a context manager that frees it. ``run`` may be called from several threads."""

    description: str  # what runs, for people
    precision: str
    largest_batch: int | None  # how many images go in one run at most; None: any number

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays by name, first dimension the batch, of any size: it is split and padded to what the engine takes."""

    def spans(self, feed: Mapping[str, np.ndarray]) -> Spans | None:
        """One more run, timed inside; None where the library cannot tell."""

    def __enter__(self) -> "Session": ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class Backend:
    """A way to run a bundle.

    ``unable(bundle, precision)`` says why this machine cannot run that bundle so, or None. ``open(bundle, precision,
    outputs)`` loads the sampler; ``outputs`` names inner values to return as well, where there are ``inner_values``.
    ``open_graph(bundle, file)`` loads another of the bundle's graphs, such as denoiser.onnx; None for a library that
    runs engines alone. ``used_memory`` is in bytes, before and after to compare.
    """

    name: str
    rank: int  # the lowest that can run a bundle is the one that "auto" takes
    unable: Callable[[Bundle, str | None], str | None]
    open: Callable[[Bundle, str | None, Sequence[str]], Session]
    open_graph: Callable[[Bundle, str], Session] | None
    used_memory: Callable[[], int]

    @property
    def inner_values(self) -> bool:
        """Whether it can return values from inside the sampler's graph."""
        return self.open_graph is not None


def check_inputs(
    wanted: Mapping[str, tuple[str, Sequence[int | str]]], feed: Mapping[str, np.ndarray], of: str
) -> None:
    """Raises UserError where ``feed`` is not what ``of`` takes: ``wanted`` has each input's dtype and shape.

    A name in a shape, or a size below 1, stands for any size, the same wherever a name stands.
    """
    if set(feed) != set(wanted):
        raise UserError(f"{of} takes {', '.join(sorted(wanted))}, and was given {', '.join(sorted(feed)) or 'nothing'}")
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in wanted.items():
        array = feed[name]
        fits = array.dtype == dtype and array.ndim == len(shape)
        for size, axis in zip(array.shape, shape, strict=False):
            open_axis = isinstance(axis, str) or axis < 1
            fits = fits and size == (
                sizes.setdefault(axis, size) if isinstance(axis, str) else size if open_axis else axis
            )
        if not fits:
            told = f"{dtype} [{', '.join(map(str, shape))}]"
            raise UserError(f"{of} takes {name} as {told}, and was given {array.dtype} {list(array.shape)}")
