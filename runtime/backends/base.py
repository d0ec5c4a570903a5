"""What every backend offers: the same verbs, whatever the engine library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge_sampler.runtime import cuda
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST


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

    ``lacks()`` says what this machine lacks for it, or None; ``unable(bundle, precision)``, asked where nothing is
    lacking, why it cannot run that bundle so, or None. ``open(bundle, precision, outputs)`` loads the sampler;
    ``outputs`` names inner values to return as well, where there are ``inner_values``. ``open_graph(bundle, file)``
    loads another of the bundle's graphs, such as denoiser.onnx; None for a library that runs engines alone.
    """

    name: str
    rank: int  # the lowest that can run a bundle is the one that "auto" takes
    lacks: Callable[[], str | None]
    unable: Callable[[Bundle, str | None], str | None]
    open: Callable[[Bundle, str | None, Sequence[str]], Session]
    open_graph: Callable[[Bundle, str], Session] | None
    gpu: bool  # whether it computes there

    def used_memory(self) -> int:
        """Bytes, before and after to compare."""
        return cuda.used_memory() if self.gpu else resident_memory()

    @property
    def inner_values(self) -> bool:
        """Whether it can return values from inside the sampler's graph."""
        return self.open_graph is not None


def resident_memory() -> int:
    """Bytes of this process in memory; 0 where the system does not tell."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * 4096


def check_declared(bundle: Bundle, takes: Mapping[str, tuple[str, Sequence[Any]]], graph: str) -> None:
    """Raises UserError where a sampler's graph ``takes`` other inputs, dtype and [batch, …], than the manifest says."""
    told = {name: (condition.dtype, condition.shape) for name, condition in bundle.inputs.conditions.items()}
    told["noise"] = "float32", bundle.inputs.shape
    if set(told) != set(takes):
        raise UserError(f"{graph} takes {', '.join(takes)}, and {MANIFEST} says {', '.join(told)}: export it again")
    for name, (dtype, shape) in told.items():
        found, (_, *sizes) = takes[name][0], takes[name][1] or [0]
        known = zip(sizes, shape, strict=False)
        different = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in known)
        if found != dtype or len(sizes) != len(shape) or different:
            raise UserError(
                f"{graph} takes {name} as {found} {sizes}, and {MANIFEST} says {dtype} {list(shape)}: export it again"
            )


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
        fits = str(array.dtype) == dtype and array.ndim == len(shape)
        for size, axis in zip(array.shape, shape, strict=False):
            open_axis = not isinstance(axis, int) or axis < 1
            fits = fits and size == (
                sizes.setdefault(axis, size) if isinstance(axis, str) else size if open_axis else axis
            )
        if not fits:
            told = f"{dtype} [{', '.join(map(str, shape))}]"
            raise UserError(f"{of} takes {name} as {told}, and was given {array.dtype} {list(array.shape)}")
