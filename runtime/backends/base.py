"""What every backend offers: the same verbs, whatever the engine library."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from edge_sampler.runtime.bundle import Bundle


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

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class Backend:
    """A way to run a bundle.

    ``unable(bundle, precision)`` says why this machine cannot run that bundle so, or None. ``open(bundle, precision,
    outputs)`` loads the sampler; ``outputs`` names inner values to return as well, for backends with an
    ``open_denoiser(bundle)``, which loads the bare denoiser. ``used_memory`` is in bytes, before and after to compare.
    """

    name: str
    unable: Callable[[Bundle, str | None], str | None]
    open: Callable[[Bundle, str | None, Sequence[str]], Session]
    open_denoiser: Callable[[Bundle], Session] | None
    used_memory: Callable[[], int]
