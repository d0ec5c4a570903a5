"""The network as solvers see it: float64 states outside, the model's own precision within, evaluations counted."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.backends.cudnn import flags

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

CHUNK = 256  # images in one call of the network


@dataclass
class Meter:
    """``evaluations`` counts those of one image; ``progress`` is told each chunk's number of images."""

    evaluations: int = 0
    progress: Callable[[int], None] = lambda images: None

    def count(self, images: int, calls: int) -> None:
        self.evaluations += images * calls
        self.progress(images)


@dataclass(frozen=True)
class Network:
    """``network(x, sigma)``: x float64 [n, channels, height, width] → denoised, likewise.

    ``class_labels`` int64 [n], or None, belong to the images in their order; of several times as many images, to each
    n of them. With classifier-free guidance, an evaluation of the model counts as the two that it is.
    """

    model: Denoiser
    class_labels: Tensor | None = None
    meter: Meter = field(default_factory=Meter)

    def part(self, rows: slice | list[int]) -> "Network":
        """The network of some of the images; it counts on the same meter."""
        return replace(self, class_labels=None if self.class_labels is None else self.class_labels[rows])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = torch.empty_like(x)
        every = None if self.class_labels is None else self.class_labels.repeat(len(x) // len(self.class_labels))
        for start in range(0, len(x), CHUNK):
            chunk = slice(start, start + CHUNK)
            denoised[chunk] = self._denoise(x[chunk].float(), sigma, None if every is None else every[chunk]).double()
        if not bool(torch.isfinite(denoised).all()):
            raise UserError(
                f"the network returned NaN or infinity at noise level {sigma:.4g}; its weights are unusable"
            )
        return denoised

    @torch.inference_mode()
    @flags(enabled=True, deterministic=True, allow_tf32=False)
    def _denoise(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        """On a GPU in float32 and no less: cuDNN would round convolutions' inputs to ten bits."""
        denoised = self.model(x, sigma, labels)
        self.meter.count(len(x), 1 if self.model.spec.guidance == 1 else 2)
        return denoised
