"""The network as solvers see it: float64 states outside, the model's own precision within, evaluations counted."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from models.precond import Denoiser
from runtime.errors import UserError

CHUNK = 256  # images in one call of the network


@dataclass
class Meter:
    """``evaluations`` counts images evaluated; ``progress`` is told each chunk's number of images."""

    evaluations: int = 0
    progress: Callable[[int], None] = lambda images: None

    def count(self, images: int) -> None:
        self.evaluations += images
        self.progress(images)


@dataclass(frozen=True)
class Network:
    """``network(x, sigma)``: x float64 [n, channels, height, width] → denoised, likewise.

    ``class_labels`` int64 [n], or None, belong to the images in their order; of several times as many images, to each
    n of them. ``guidance`` S ≠ 1 is classifier-free guidance (arXiv 2207.12598): D_∅ + S·(D_c - D_∅), one evaluation to
    the solver, two of the network.
    """

    model: Denoiser
    class_labels: Tensor | None = None
    guidance: float = 1.0
    meter: Meter = field(default_factory=Meter)

    def part(self, images: slice) -> "Network":
        """The network of some of the images; it counts on the same meter."""
        return replace(self, class_labels=None if self.class_labels is None else self.class_labels[images])

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = torch.empty_like(x)
        every = None if self.class_labels is None else self.class_labels.repeat(len(x) // len(self.class_labels))
        for start in range(0, len(x), CHUNK):
            chunk = slice(start, start + CHUNK)
            denoised[chunk] = self._guided(x[chunk].float(), sigma, None if every is None else every[chunk]).double()
        if not bool(torch.isfinite(denoised).all()):
            raise UserError(
                f"the network returned NaN or infinity at noise level {sigma:.4g}; its weights are unusable"
            )
        return denoised

    @torch.inference_mode()
    def _guided(self, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
        denoised = self.model(x, sigma, labels)
        self.meter.count(len(x))
        if self.guidance != 1:
            unconditional = self.model(x, sigma, None)
            self.meter.count(len(x))
            denoised = unconditional + self.guidance * (denoised - unconditional)
        return denoised
