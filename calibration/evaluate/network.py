"""The network as solvers see it: float64 states outside, the model's own precision within, evaluations counted."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.backends.cudnn import flags

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

CHUNK, CHUNK_VALUES = 256, 2**22  # in one call of the network, at the most: samples, and numbers of them


@dataclass
class Meter:
    """``evaluations`` counts those of one sample; ``progress`` is told each chunk's number of samples."""

    evaluations: int = 0
    progress: Callable[[int], None] = lambda samples: None

    def count(self, samples: int, calls: int) -> None:
        self.evaluations += samples * calls
        self.progress(samples)


@dataclass(frozen=True)
class Network:
    """``network(x, sigma)``: x float64 [n, *shape] → denoised, likewise.

    ``conditions`` by name, [n, …], belong to the samples in their order; of several times as many samples, to each n of
    them. With guidance, an evaluation of the model counts as the branches that it has.
    """

    model: Denoiser
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)

    def part(self, rows: slice | list[int]) -> "Network":
        """The network of some of the samples; it counts on the same meter."""
        return replace(self, conditions={name: value[rows] for name, value in self.conditions.items()})

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = torch.empty_like(x)
        size = max(1, min(CHUNK, CHUNK_VALUES * len(x) // max(1, x.numel())))
        for start in range(0, len(x), size):
            rows = torch.arange(start, min(start + size, len(x)), device=x.device)
            told = {name: value[rows % len(value)] for name, value in self.conditions.items()}
            denoised[start : start + size] = self._denoise(x[start : start + size].float(), sigma, told).double()
        if not bool(torch.isfinite(denoised).all()):
            raise UserError(
                f"the network returned NaN or infinity at noise level {sigma:.4g}; its weights are unusable"
            )
        return denoised

    @torch.inference_mode()
    @flags(enabled=True, deterministic=True, allow_tf32=False)
    def _denoise(self, x: Tensor, sigma: float, conditions: Mapping[str, Tensor]) -> Tensor:
        """On a GPU in float32 and no less: cuDNN would round convolutions' inputs to ten bits."""
        denoised = self.model(x, sigma, **conditions)
        self.meter.count(len(x), self.model.spec.branches)
        return denoised
