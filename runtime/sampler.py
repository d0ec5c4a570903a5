"""Makes samples from seeds and conditions, in batches, through one backend."""

import sys
from collections.abc import Mapping, Sequence
from math import prod
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Backend
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import MOST_NUMBERS
from edge_sampler.runtime.condition import array_of, sizes_of
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.noise import SEEDS, noise_of

DEFAULT_BATCH, VALUES = 64, 2**18  # in one run, unless told: samples, and values of their states
FLOAT = np.finfo(np.float32)


class Sampler:
    """A bundle's sampler, loaded into a backend. As a context manager it frees the backend. ``description`` names it.

    Args:
        bundle: an open bundle; ``edge_sampler.load`` takes a folder.
        backend: a name of ``edge_sampler.runtime.backends.BACKENDS``, or "auto": the best that this machine can run.
        precision: as in ``load``.

    Raises:
        UserError: if a file is damaged or no backend can run the bundle.

    Examples:
        >>> with edge_sampler.Sampler(edge_sampler.Bundle.open("shrink"), "onnxrt") as sampler:
        ...     images = sampler.sample(seeds=[3, 7])
        ...     alone = sampler.sample(seeds=[7])
        >>> images.shape, images.dtype, bool((images[1] == alone[0]).all())
        ((2, 1, 8, 8), dtype('float32'), True)
    """

    def __init__(self, bundle: Bundle, backend: str = "auto", precision: str | None = None) -> None:
        self.bundle = bundle
        chosen = choose(bundle, backend, precision)
        self._session = chosen.open(bundle, precision, hidden_floats(bundle, chosen))
        self._closed = False
        self.description = self._session.description
        if bundle.random_weights:
            print("note: this bundle has random weights; what it makes means nothing", file=sys.stderr)

    def sample(
        self, seeds: Sequence[int], batch: int | None = None, temperature: float | None = None, **conditions: Any
    ) -> np.ndarray:
        """Makes samples. A sample depends on its own seed and conditions, and not on other samples.

        Args:
            seeds: whole numbers, 0 to 2^63 - 1; a million at most.
            batch: the number of samples in one run; by default the engine's largest, or ``usual_batch``.
            temperature: scales the noise; by default ``bundle.temperature``, for which the sampler is fitted.
            conditions: the inputs in ``bundle.inputs`` by name: one value, or one for each seed, [n, …]. For a text
                condition, a text or a list of texts. A named axis that no condition sizes is an argument too, such as
                ``length=120``.

        Returns:
            Samples [n, …], as ``bundle.output`` and ``bundle.dtype`` say. Images are float32 [n, C, H, W] in about
            [-1, 1], or uint8 [n, H, W, C] if the bundle says so.

        Raises:
            UserError: for seeds out of range, or too many; for a condition that is missing, unknown or of a wrong dtype
                or shape; and for a batch larger than the engine's.
            BoundError: on the CPU, where pictures of uint8 would be of NaN or infinity, which they cannot hold.
        """
        if self._closed:
            raise UserError("the sampler is closed: sample inside its with block")
        if not isinstance(batch, int | np.integer | None):
            raise UserError(f"batch is {batch!r:.40}; it must be a whole number")
        temperature = checked_temperature(self.bundle, temperature)
        largest = self._session.largest_batch
        if batch is not None and (batch < 1 or (largest and batch > largest)):
            raise UserError(f"batch is {batch}; it must be at least 1{f' and at most {largest}' if largest else ''}")
        seeds = checked_seeds(seeds)
        values, sizes = self.bundle.inputs.check(self.bundle.tokenized(conditions), len(seeds))
        shape, made = self.bundle.inputs.sized(sizes=sizes), []
        batch = batch or largest or usual_batch(shape)
        for start in range(0, len(seeds), batch):
            rows = slice(start, start + batch)
            noise = noise_of(seeds[rows], shape, temperature)
            feed = {"noise": noise, **{name: value[rows] for name, value in values.items()}}
            found = self._session.run(feed)
            made.append(made_of(self.bundle, feed, found))
            if self.bundle.dtype == "uint8" and self.bundle.inner_output in found:
                finite = np.isfinite(found[self.bundle.inner_output]).reshape(len(noise), -1).all(1)
                if not finite.all():
                    wrong = seeds[start + int(np.argmin(finite))]
                    raise BoundError(f"seed {wrong} makes NaN or infinity, which pictures of uint8 cannot hold")
        return np.concatenate(made)

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._closed:
            self._closed = True
            self._session.__exit__(*exception)


def hidden_floats(bundle: Bundle, backend: Backend) -> tuple[str, ...]:
    """What pictures of uint8 are rounded of, which can hold NaN, to be returned as well where that costs little."""
    shown = bundle.dtype == "uint8" and backend.inner_values and not backend.gpu
    return (bundle.inner_output,) if shown else ()


def usual_batch(shape: Sequence[int]) -> int:
    """How many samples go in one run where no engine says it: 64 of 3×32×32, and one of 3×256×256.

    What a network computes with is some thousand times as large as a state; without a bound it would fill the memory.
    """
    return max(1, min(DEFAULT_BATCH, VALUES // prod(shape)))


def made_of(bundle: Bundle, feed: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> np.ndarray:
    """What a sampler made of ``feed``, among all that its run returned.

    Raises UserError where that has another name, type or shape than the manifest says.
    """
    count, *shape = shape_made(bundle, feed)
    if bundle.dtype == "uint8":
        shape = [*shape[1:], shape[0]]
    return checked(found, bundle.output.name, (count, *shape), bundle.dtype, f"the sampler of {bundle.folder}")


def shape_made(bundle: Bundle, feed: Mapping[str, np.ndarray]) -> tuple[int, ...]:
    """[n, …] of the samples that are made of a feed."""
    sizes = sizes_of(bundle.inputs.shape, feed["noise"].shape[1:])
    for name, condition in bundle.inputs.conditions.items():
        sizes |= sizes_of(condition.shape, feed[name].shape[1:])
    return len(feed["noise"]), *bundle.inputs.sized(bundle.output.shape, sizes)


def checked(found: Mapping[str, np.ndarray], name: str, shape: Sequence[int], dtype: str, by: str) -> np.ndarray:
    """One array of those that ``by`` made. Raises UserError where it is not there, or of another type or shape."""
    if name not in found:
        raise UserError(f"{by} makes {', '.join(found)}, and no {name}: export the bundle again")
    array = found[name]
    if not isinstance(array, np.ndarray):
        raise UserError(f"{by} makes {name} as a {type(array).__name__}, and no array: export the bundle again")
    if array.dtype != dtype or array.shape != tuple(shape):
        raise UserError(
            f"{by} makes {name} {array.dtype} {list(array.shape)}, not {dtype} {list(shape)}: export the bundle again"
        )
    return array


def load(
    bundle: str | Path, backend: str = "auto", precision: str | None = None, verify_key: str | Path | None = None
) -> Sampler:
    """Opens a bundle for sampling.

    Args:
        bundle: the bundle's folder.
        backend: a name of ``edge_sampler.runtime.backends.BACKENDS``, or "auto": the best that this machine can run.
        precision: "fp32", or another precision of the bundle, such as "fp16" or "int8"; None: the fastest of an engine,
            or fp32 in ONNX Runtime.
        verify_key: the file of minisign's public key. A bundle that this key has not signed is refused unread.

    Returns:
        The sampler, a context manager.

    Raises:
        UserError: if the bundle is damaged, or no backend can run it here.

    Examples:
        >>> with edge_sampler.load("shrink") as sampler:
        ...     sampler.sample(seeds=range(64)).shape
        (64, 1, 8, 8)
    """
    return Sampler(Bundle.open(bundle, verify_key), backend, precision)


def checked_temperature(bundle: Bundle, temperature: float | None) -> float:
    """The bundle's where None is given. Raises UserError for anything but a number above 0 that float32 holds."""
    if temperature is None:
        return bundle.temperature
    if not isinstance(temperature, Real) or not float(FLOAT.tiny) <= temperature <= float(FLOAT.max):
        raise UserError(f"temperature is {temperature!r:.40}; it must be above 0 and finite, as a float32")
    return float(temperature)


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """Whole numbers, at least one, as many as a command line takes. Raises UserError for anything else."""
    try:
        if (count := len(seeds)) > MOST_NUMBERS:  # before anything is made of them
            raise UserError(f"{count:,} seeds are too many: one call takes {MOST_NUMBERS:,} at most")
        array = array_of(seeds)
    except (TypeError, ValueError, OverflowError):  # no list, lists of several lengths, a range beyond what len() tells
        array = np.empty(0)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
        raise UserError(
            f"seeds are {seeds!r:.80}; they must be whole numbers below {SEEDS}, at least one, such as [0, 1, 2]"
        )
    return [int(seed) for seed in array]


def feed_of(
    bundle: Bundle, seeds: Sequence[int], conditions: Mapping[str, Any], stream: int = 0
) -> dict[str, np.ndarray]:
    """The graph's inputs for these seeds: noise [n, *shape] of that stream, at the bundle's temperature, and each
    condition [n, …].
    """
    values, sizes = bundle.inputs.check(conditions, len(seeds))
    return {"noise": noise_of(seeds, bundle.inputs.sized(sizes=sizes), bundle.temperature, stream), **values}
