"""The network as solvers see it: float64 states outside, the model's own precision within, evaluations counted."""

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.backends.cudnn import flags
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edge_sampler.calibration.evaluate.distributed import BLOCK
from edge_sampler.calibration.evaluate.side_by_side import Replicas, run
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import labels_told

CHUNK, CHUNK_BYTES = 256, 4 * 2**30  # computed at once, at the most: samples on a GPU, and what they take in memory
WORTH = 3 * 2**19  # bytes that samples take in memory, for which a thread of a CPU is worth while
SCRATCH = 2  # that an evaluation takes for each byte of its tensors: oneDNN copies them, 1.4 to 2 times was measured
LARGE = 2**28  # bytes of memory that a call takes, from which on its free memory is worth giving back


class NotFiniteError(UserError):
    """A network's answer that is no number. A trial of a sampler may end so; what is asked of a model may not."""


@dataclass
class Meter:
    """``evaluations`` counts evaluations of one sample; ``progress`` gets each chunk's number of samples.

    ``sample_bytes`` is the memory that an evaluation of one sample takes, once it was measured.
    """

    evaluations: int = 0
    progress: Callable[[int], None] = lambda samples: None
    sample_bytes: int = 0

    def count(self, samples: int, calls: int) -> None:
        self.evaluations += samples * calls
        self.progress(samples)


@dataclass(frozen=True)
class Network:
    """``network(x, sigma)``: x float64 [n, *shape] → denoised, likewise.

    ``conditions`` by name, [n, …], belong to the samples in their order; for k·n samples they repeat k times. With
    guidance, an evaluation of the model counts as the branches that it has. ``evaluations`` are what a sampler has
    in the model's place, one for each of its evaluations, where these differ: quantised ones do.
    """

    model: Denoiser
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    evaluations: Sequence[Denoiser] = ()
    replicas: Replicas = field(default_factory=Replicas)

    def at(self, evaluation: int) -> "Network":
        """The network of a sampler's k-th evaluation."""
        return replace(self, model=self.evaluations[evaluation], evaluations=()) if self.evaluations else self

    def in_turn(self) -> Callable[[Tensor, float], Tensor]:
        """The network as one run of a sampler calls it: each call is of the next evaluation."""
        calls = count()
        return lambda x, sigma: self.at(next(calls))(x, sigma)

    @property
    def labels(self) -> Tensor | None:
        """Each sample's label [n], where the model's one condition is a label."""
        labels: Tensor | None = labels_told(self.conditions, self.model.spec.inputs)
        return labels

    def part(self, rows: slice | list[int]) -> "Network":
        """The network of some of the samples; it counts on the same meter."""
        return replace(self, conditions={name: value[rows] for name, value in self.conditions.items()})

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised, threads = torch.empty_like(x), self.threads(x, sigma)

        def call(model: Denoiser, part: slice) -> Tensor:
            rows = torch.arange(part.start, part.stop, device=x.device)
            told = {name: value[rows % len(value)] for name, value in self.conditions.items()}
            return denoise(model, x[part], sigma, told)

        models = [self.model]
        if min(threads, len(x)) > 1:
            models = self.replicas.of(self.model, lambda model, row: call(model, slice(row, row + 1)))[:threads]
        size = self.samples_in_a_call(x, sigma, len(models), threads)
        parts = [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]
        with in_float32():
            for part, made in zip(parts, run(call, models, parts, threads), strict=True):
                denoised[part] = made
                self.meter.count(len(made), self.model.spec.branches)
        if x.device.type == "cpu" and self.meter.sample_bytes * size * len(models) > LARGE:
            give_back_memory()
        if not bool(torch.isfinite(denoised).all()):
            raise NotFiniteError(
                f"the network returned NaN or infinity at noise level {sigma:.4g}; its weights are unusable"
            )
        return denoised

    def threads(self, x: Tensor, sigma: float) -> int:
        """Of PyTorch's, as many as the samples are worth."""
        most = torch.get_num_threads()
        if x.device.type != "cpu" or (len(x) < 2 and not self.meter.sample_bytes):
            return most
        return max(1, min(most, len(x) * self.sample_bytes(x, sigma) // WORTH))

    def samples_in_a_call(self, x: Tensor, sigma: float, calls: int, threads: int) -> int:
        """Of x, where so many calls run side by side."""
        if len(x) < 2:
            return 1
        rounds = -(-len(x) // most_at_once(x.device, threads))
        even = -(-len(x) // (rounds * calls))
        return max(1, min(even, CHUNK_BYTES // calls // self.sample_bytes(x, sigma)))

    def sample_bytes(self, x: Tensor, sigma: float) -> int:
        """What an evaluation of one sample takes in memory; measured once, by one that does not count."""
        if not self.meter.sample_bytes:
            with Live() as live, in_float32():
                denoise(self.model, x[:1], sigma, {name: value[:1] for name, value in self.conditions.items()})
            self.meter.sample_bytes = max(1, SCRATCH * live.peak) + self.model.spec.branches * self.model.outside_bytes
        return self.meter.sample_bytes


def most_at_once(device: torch.device, threads: int) -> int:
    """Samples that are computed at the same time. On a CPU more than ``BLOCK`` in a call are no faster."""
    return BLOCK * threads if device.type == "cpu" else CHUNK


@torch.inference_mode()
def denoise(model: Denoiser, x: Tensor, sigma: float, conditions: Mapping[str, Tensor]) -> Tensor:
    """float64, computed in the model's precision."""
    return model(x.float(), sigma, **conditions).double()


def give_back_memory() -> None:
    """Gives free memory of glibc's heap back to the system. Else the heap breaks into pieces, and grows for an hour."""
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def in_float32() -> AbstractContextManager[None]:
    """On a GPU too, where cuDNN would round convolutions' inputs to ten bits."""
    return flags(enabled=True, deterministic=True, allow_tf32=False)


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``peak`` is the most bytes that tensors made inside took at once; an operator's scratch memory is left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.made = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage()._cdata for one in tensors((args, kwargs))}  # views of these count as these
        made = func(*args, **(kwargs or {}))
        for one in tensors(made):
            storage = one.untyped_storage()
            if storage._cdata not in self.made | given:
                self.made.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes()).atexit = False
        self.peak = max(self.peak, self.now)
        return made

    def forget(self, key: int, size: int) -> None:
        self.made.discard(key)
        self.now -= size


def tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]
