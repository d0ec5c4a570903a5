"""What each kind of network is trained to minimise: ``loss(network, images, labels)``, a scalar.

Labels are classes [n], or a caption's tokens [n, length].
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from edge_sampler.models.denoiser import Preconditioned, per_sample
from edge_sampler.models.networks.text_encoder import PAD
from edge_sampler.models.precond import DDPM_SIGMAS
from edge_sampler.models.prompts import EMBEDS
from edge_sampler.runtime.condition import CLASSES

LABEL_DROPOUT = 0.1  # of labels hidden, so that the network knows the unconditional branch of guidance (2207.12598)


def weighted_error(
    model: Preconditioned, images: Tensor, labels: Tensor, sigma: Tensor, weight: Tensor | float = 1.0
) -> Tensor:
    """weight·|D(y + σn; σ) - y|²/c_out² averaged over the batch and pixels; sigma and weight are [n].

    Without a weight, every noise level asks the same of the raw network (arXiv 2206.00364, eq. 8).
    """
    hidden = torch.rand(len(labels), device=labels.device) < LABEL_DROPOUT
    known = {CLASSES: labels.masked_fill(hidden, -1)} if model.classes else {}
    if model.encoder is not None:
        words = torch.arange(labels.shape[1], device=labels.device) > 0  # behind the token that starts any caption
        known = {EMBEDS: model.encoder(labels.masked_fill(hidden[:, None] & words, PAD))[0]}
    denoised = model(images + per_sample(sigma, images) * torch.randn_like(images), sigma, **known)
    out = per_sample(model.preconditioning.coefficients(sigma).c_out, images)
    return (per_sample(weight, images) * (denoised.float() - images) ** 2 / out**2).mean()


def edm(model: Preconditioned, images: Tensor, labels: Tensor) -> Tensor:
    """EDM's (arXiv 2206.00364, Table 1): ln σ ~ N(-0.8, 1.2²), λ = (σ² + σ_data²) / (σ·σ_data)²."""
    return weighted_error(model, images, labels, log_normal(-0.8, 1.2, images))


def flow(model: Preconditioned, images: Tensor, labels: Tensor) -> Tensor:
    """Rectified flow's (arXiv 2209.03003, eq. 1) with t drawn logit-normally (2403.03206, eq. 19): ln σ ~ N(0, 1)."""
    return weighted_error(model, images, labels, log_normal(0.0, 1.0, images))


def log_normal(mean: float, deviation: float, images: Tensor) -> Tensor:
    """A σ for each image, ln σ ~ N(mean, deviation²)."""
    return (torch.randn(len(images), device=images.device) * deviation + mean).exp()


def ddpm(model: Preconditioned, images: Tensor, labels: Tensor, sigmas: np.ndarray = DDPM_SIGMAS) -> Tensor:
    """|ε̂ - ε|² at a random step of DDPM's (arXiv 2006.11239, eq. 14), times max(1, σ²).

    That is the truncated SNR weight, λ = max(1/σ², 1) on denoised images (arXiv 2202.00512, section 4). The simple loss
    has no such factor and hardly sees what they err at high noise.
    """
    steps = torch.randint(len(sigmas), (len(images),), device=images.device)
    sigma = torch.tensor(sigmas, dtype=torch.float32, device=images.device)[steps]
    return weighted_error(model, images, labels, sigma, (sigma**2).clamp_min(1.0))


def classification(classifier: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(classifier(images), labels)


Objective = Callable[[Any, Tensor, Tensor], Tensor]
OF_PRECONDITIONING: dict[str, Objective] = {"EDMPrecond": edm, "DDPMPrecond": ddpm, "FlowPrecond": flow}
