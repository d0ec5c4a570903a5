"""The network as solvers see it: float64 states outside, the model's own precision within, evaluations counted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.precond import Denoiser
from runtime.errors import UserError

CHUNK = 256  # images in one call of the network


@dataclass
class Network:
    """``network(x, sigma)``: x float64 [n, channels, height, width] → denoised, likewise.

    ``class_labels`` int64 [n], or None, belong to the images in their order. ``evaluations`` counts images evaluated;
    ``progress`` is told each chunk's number of images.
    """

    model: Denoiser
    class_labels: Tensor | None = None
    evaluations: int = 0
    progress: Callable[[int], None] = lambda images: None

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoised = torch.empty_like(x)
        every = None if self.class_labels is None else self.class_labels.repeat(len(x) // len(self.class_labels))
        for start in range(0, len(x), CHUNK):
            chunk = slice(start, start + CHUNK)
            labels = None if every is None else every[chunk]
            with torch.inference_mode():
                denoised[chunk] = self.model(x[chunk].float(), sigma, labels).double()
            self.evaluations += len(x[chunk])
            self.progress(len(x[chunk]))
        if not bool(torch.isfinite(denoised).all()):
            raise UserError(
                f"the network returned NaN or infinity at noise level {sigma:.4g}; its weights are unusable"
            )
        return denoised
