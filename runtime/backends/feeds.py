"""An engine's inputs, and how a call's arrays are split over its runs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_sampler.runtime.backends.tensorrt_module import Library
from edge_sampler.runtime.engine_record import Batch
from edge_sampler.runtime.errors import UserError

if TYPE_CHECKING:
    import tensorrt


@dataclass(frozen=True)
class Wanted:
    """One input of an engine: its type, and the range of each size behind the batch."""

    dtype: np.dtype[Any]
    sizes: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        sizes = (str(least) if least == most else f"{least} to {most}" for least, most in self.sizes)
        return f"{self.dtype} [{', '.join(['batch', *sizes])}]"

    def fits(self, array: np.ndarray) -> bool:
        known = array.dtype == self.dtype and array.ndim == 1 + len(self.sizes)
        return known and all(a <= size <= b for size, (a, b) in zip(array.shape[1:], self.sizes, strict=True))


def wanted_by(lib: Library, engine: "tensorrt.ICudaEngine") -> dict[str, Wanted]:
    """By input. An output has no profile, and so is none."""
    wanted = {}
    for name in tensor_names(engine):
        if engine.get_tensor_mode(name) == lib.TensorIOMode.INPUT:
            least, _, most = engine.get_tensor_profile_shape(name, 0)
            sizes = tuple((int(least[axis]), int(most[axis])) for axis in range(1, len(least)))
            wanted[name] = Wanted(np.dtype(lib.nptype(engine.get_tensor_dtype(name))), sizes)
    return wanted


def check_feed(feed: Mapping[str, np.ndarray], wanted: Mapping[str, Wanted]) -> None:
    """Raises UserError for a feed that an engine does not take; it names what came and what is needed."""
    if set(feed) != set(wanted):
        raise UserError(f"the engine takes {', '.join(wanted)}, and was given {', '.join(feed) or 'nothing'}")
    count = len(next(iter(feed.values())))
    for name, array in feed.items():
        came = f"{name} is {array.dtype} {list(array.shape)}; the engine takes {wanted[name]}"
        if not wanted[name].fits(array):
            raise UserError(came)
        if len(array) != count or not count:
            raise UserError(f"{came}, of one batch for all, 1 or more: {', '.join(feed)}")


def split(feed: Mapping[str, np.ndarray], batch: Batch) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Pieces that an engine takes, and how many images of each are real: the last is padded with copies."""
    total = len(feed["noise"])
    for start in range(0, total, batch.max):
        count = min(batch.max, total - start)
        rows = np.minimum(np.arange(max(count, batch.min)), count - 1) + start
        yield {name: array[rows] for name, array in feed.items()}, count


def tensor_names(engine: "tensorrt.ICudaEngine") -> list[str]:
    return [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
