"""A bundle's sampler as a PyTorch loop, for ``python -m runtime bench`` to compare with."""

from collections.abc import Callable

import numpy as np
import torch

from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.loading import load
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample


def make(bundle: Bundle, weights: str | None) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(noise [n, C, H, W], class_labels int64 [n]) → images, float32, by the very weights the bundle was made of.

    ``weights`` is the checkpoint, for a bundle whose model is not in the zoo. Raises UserError when the weights are
    not to be had, or are others.
    """
    recorded = bundle.manifest["model"]
    model = load(weights or recorded["name"], random_weights=bundle.random_weights)
    model = conditioned(model, recorded.get("class_label"), recorded.get("guidance", 1.0))
    if model.spec.weights_sha256 != recorded["weights_sha256"]:
        raise UserError("the weights found are not those of the bundle")

    def run(noise: np.ndarray, class_labels: np.ndarray) -> np.ndarray:
        labels = torch.from_numpy(class_labels) if bundle.classes else None
        with torch.inference_mode():
            images: torch.Tensor = sample(
                lambda x, sigma: model(x, sigma, labels), torch.from_numpy(noise), bundle.plan
            )
        return images.numpy()

    return run
