"""What every backend offers: the same verbs, whatever the engine library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edge_sampler.runtime import cuda
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import axis_in
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST


@dataclass(frozen=True)
class Spans:
    """Seconds of one run on a GPU, by its own clock.

    Args:
        host_to_device: copying the inputs.
        compute: the sampler.
        device_to_host: copying the output.

    Examples:
        >>> from edge_sampler.runtime.backends.base import Spans
        >>> Spans(1e-4, 1e-2, 1e-4).compute
        0.01
    """

    host_to_device: float
    compute: float
    device_to_host: float


class Session(Protocol):
    """A sampler, loaded; a context manager that frees it. ``run`` may be called from several threads.

    ``description`` tells people what runs, ``precision`` in what, and ``largest_batch`` how many samples go in one run
    at most; None: any number.

    Examples:
        >>> from edge_sampler.runtime.backends import BACKENDS
        >>> with BACKENDS["onnxrt"].open(edge_sampler.Bundle.open("shrink"), None, ["denoised_0"]) as session:
        ...     made = session.run({"noise": np.zeros((2, 1, 8, 8), np.float32)})
        >>> sorted(made), session.precision, session.largest_batch, session.spans({})
        (['denoised_0', 'images'], 'fp32', None, None)
    """

    description: str
    precision: str
    largest_batch: int | None

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the sampler once. A batch of any size is split and padded to what an engine takes.

        Args:
            feed: ``noise`` float32 [n, *shape], and each condition [n, …], as ``bundle.inputs`` says.

        Returns:
            What the sampler makes, [n, …], and the inner values that were asked for, by name.

        Raises:
            UserError: for anything else, and where the library fails.
        """

    def spans(self, feed: Mapping[str, np.ndarray]) -> Spans | None:
        """One more run, timed inside.

        Args:
            feed: as of ``run``.

        Returns:
            Seconds; None where the library cannot tell.
        """

    def __enter__(self) -> "Session": ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class Backend:
    """A way to run a bundle. A file in runtime/backends/ with a tuple ``BACKENDS`` of these adds some.

    Args:
        name: its name on command lines.
        rank: "auto" takes the backend with the lowest rank that can run the bundle.
        lacks: ``lacks()`` names what this machine lacks, or returns None.
        unable: ``unable(bundle, precision)`` says why it cannot run that bundle so, or returns None. It is called if
            the machine lacks nothing.
        open: ``open(bundle, precision, outputs)`` loads the sampler; ``outputs`` names inner values to return as well,
            where there are ``inner_values``.
        open_graph: ``open_graph(bundle, file)`` loads another of the bundle's graphs, such as denoiser.onnx; None for a
            library that runs engines alone.
        gpu: whether it computes on a GPU.
        precision: ``precision(bundle, asked)`` names the precision that ``open`` runs where ``asked`` may be None.

    Examples:
        >>> from dataclasses import replace
        >>> from edge_sampler.runtime.backends import BACKENDS
        >>> mine = replace(BACKENDS["onnxrt"], name="mine", rank=99)
        >>> mine.lacks(), mine.unable(edge_sampler.Bundle.open("shrink"), "fp32"), mine.inner_values
        (None, None, True)
        >>> mine.precision(edge_sampler.Bundle.open("shrink"), None)
        'fp32'
        >>> mine.used_memory() > 0
        True
    """

    name: str
    rank: int
    lacks: Callable[[], str | None]
    unable: Callable[[Bundle, str | None], str | None]
    open: Callable[[Bundle, str | None, Sequence[str]], Session]
    open_graph: Callable[[Bundle, str], Session] | None
    gpu: bool
    precision: Callable[[Bundle, str | None], str] = lambda bundle, asked: asked or "fp32"

    def used_memory(self) -> int:
        """What is taken now, to be compared with another moment.

        Returns:
            Bytes of the GPU's memory, or of this process; 0 where the system does not tell.
        """
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

    A name in a shape, or a size below 1, stands for any size, the same wherever a name stands; 2*name for twice that.
    """
    if set(feed) != set(wanted):
        raise UserError(f"{of} takes {', '.join(sorted(wanted))}, and was given {', '.join(sorted(feed)) or 'nothing'}")
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in wanted.items():
        array = feed[name]
        fits = str(array.dtype) == dtype and array.ndim == len(shape)
        for size, axis in zip(array.shape, shape, strict=False):
            if isinstance(axis, str):
                times, named = axis_in(axis)
                fits = fits and size == times * sizes.setdefault(named, size // times)
            else:
                fits = fits and (size == axis or not isinstance(axis, int) or axis < 1)
        if not fits:
            told = f"{dtype} [{', '.join(map(str, shape))}]"
            raise UserError(f"{of} takes {name} as {told}, and was given {array.dtype} {list(array.shape)}")
