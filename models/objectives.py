"""What each kind of network is trained to minimise: ``loss(network, images, labels)``, a scalar."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.precond import DDPM_SIGMAS, Denoiser, per_image

LABEL_DROPOUT = 0.1  # of labels hidden, so that the network knows the unconditional branch of guidance (2207.12598)
P_MEAN, P_STD = -0.8, 1.2  # EDM: ln σ ~ N(P_MEAN, P_STD²)


def weighted_error(model: Denoiser, images: Tensor, labels: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
    """weight(σ)·|D(y + σn; σ) - y|² averaged over the batch and pixels; sigma and weight are [n]."""
    hidden = torch.rand(len(labels), device="cpu").to(labels.device) < LABEL_DROPOUT
    known = labels.masked_fill(hidden, -1) if model.label_dim else None
    noise = torch.randn(images.shape, device="cpu").to(images.device)  # the CPU's stream: one run on every device
    denoised = model(images + per_image(sigma) * noise, sigma, known)
    return (per_image(weight) * (denoised.float() - images) ** 2).mean()


def edm(model: Denoiser, images: Tensor, labels: Tensor) -> Tensor:
    """EDM's (arXiv 2206.00364, Table 1 and eq. 21–22): λ = (σ² + σ_data²) / (σ·σ_data)²."""
    sigma = (torch.randn(len(images), device="cpu") * P_STD + P_MEAN).exp().to(images.device)
    weight = (sigma**2 + model.sigma_data**2) / (sigma * model.sigma_data) ** 2
    return weighted_error(model, images, labels, sigma, weight)


def ddpm(model: Denoiser, images: Tensor, labels: Tensor) -> Tensor:
    """DDPM's simple loss (arXiv 2006.11239, eq. 14), |ε̂ - ε|² at a random step: λ = 1/σ² on denoised images."""
    steps = torch.randint(len(DDPM_SIGMAS), (len(images),), device="cpu")
    sigma = torch.tensor(DDPM_SIGMAS, dtype=torch.float32)[steps].to(images.device)
    return weighted_error(model, images, labels, sigma, sigma**-2)


def classification(classifier: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(classifier(images), labels)


Objective = Callable[[Any, Tensor, Tensor], Tensor]
