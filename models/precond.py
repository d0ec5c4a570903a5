"""The denoiser contract, and the preconditionings that turn a raw network into one.

Each preconditioning is a column of Table 1 in Karras et al., "Elucidating the Design Space" (arXiv 2206.00364), for
its eq. 7: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.dhariwal_unet import DhariwalUNet
from models.song_unet import SongUNet

NETWORKS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


@dataclass(frozen=True)
class Coefficients:
    """The four factors of eq. 7, each [n or 1] or a plain number."""

    skip: Tensor | float
    out: Tensor
    in_: Tensor | float
    noise: Tensor


@dataclass(frozen=True)
class Preconditioning:
    coefficients: Callable[[Tensor, float], Coefficients]  # of sigma [n or 1] and sigma_data
    sigma_limits: tuple[float, float]  # what noise levels the network knows
    default_network: str


def edm(sigma: Tensor, sigma_data: float) -> Coefficients:
    variance = sigma**2 + sigma_data**2
    scale = variance.rsqrt()
    return Coefficients(sigma_data**2 / variance, sigma * sigma_data * scale, scale, sigma.log() / 4)


VP_BETA_D, VP_BETA_MIN, VP_LAST_STEP = 19.9, 0.1, 999


def vp(sigma: Tensor, sigma_data: float) -> Coefficients:
    """The network predicts the noise and is told 999·t, t being σ's time in the variance-preserving process."""
    log_variance = (1 + sigma**2).log()
    time = ((VP_BETA_MIN**2 + 2 * VP_BETA_D * log_variance).sqrt() - VP_BETA_MIN) / VP_BETA_D
    return Coefficients(1.0, -sigma, (1 + sigma**2).rsqrt(), VP_LAST_STEP * time)


def vp_sigma(time: float) -> float:
    return math.sqrt(math.expm1(VP_BETA_D * time**2 / 2 + VP_BETA_MIN * time))


DDPM_BETAS = np.linspace(1e-4, 0.02, 1000)
DDPM_SIGMAS = np.sqrt(1 / np.cumprod(1 - DDPM_BETAS) - 1)  # √((1 - ᾱ_t)/ᾱ_t) at the 1,000 steps of arXiv 2006.11239


def ddpm(sigma: Tensor, sigma_data: float) -> Coefficients:
    """The network predicts the noise and is told its discrete step t, between two steps interpolated in ln σ."""
    known = torch.tensor(np.log(DDPM_SIGMAS), dtype=sigma.dtype, device=sigma.device)
    level = sigma.log()
    below = ((level[:, None] >= known).sum(dim=1) - 1).clamp(0, len(known) - 2)
    between = (level - known[below]) / (known[below + 1] - known[below])
    return Coefficients(1.0, -sigma, (1 + sigma**2).rsqrt(), below + between.clamp(0, 1))


def ve(sigma: Tensor, sigma_data: float) -> Coefficients:
    return Coefficients(1.0, sigma, 1.0, (sigma / 2).log())


PRECONDITIONINGS = {
    "EDMPrecond": Preconditioning(edm, (0.0, math.inf), "DhariwalUNet"),
    "VPPrecond": Preconditioning(vp, (vp_sigma(1e-5), vp_sigma(1.0)), "SongUNet"),
    "DDPMPrecond": Preconditioning(ddpm, (float(DDPM_SIGMAS[0]), float(DDPM_SIGMAS[-1])), "SongUNet"),
    "VEPrecond": Preconditioning(ve, (0.02, 100.0), "SongUNet"),
}


@dataclass(frozen=True)
class ModelSpec:
    """What a denoiser is, apart from the values of its weights."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width
    classes: int  # 0: unconditional
    sigma_min: float  # the noise levels to sample between, in pixel units
    sigma_max: float
    sigma_data: float  # standard deviation of the training images
    licence: str
    weights_sha256: str  # of names, shapes and float32 values, so the same in every file format
    random_weights: bool  # True: a dry run, whose images mean nothing


class Denoiser(nn.Module):
    """``denoised = model(x, sigma, class_labels=None)``: what every model of this project is.

    Args of a call:
        x: noisy images, float32 [n, channels, height, width].
        sigma: noise level, standard deviation in pixel units; a number, a scalar tensor, or [n].
        class_labels: int64 [n], -1 meaning "no class"; None is -1 for every image.

    Returns the expected clean images, float32, shaped as x. ``spec`` describes the model; ``zoo.load`` sets it.
    """

    spec: ModelSpec

    def __init__(
        self,
        precond: str,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str | None = None,
        sigma_data: float = 0.5,
        **network_arguments: Any,
    ) -> None:
        super().__init__()
        if precond not in PRECONDITIONINGS:
            raise ValueError(f"precond is {precond!r}; allowed: {', '.join(PRECONDITIONINGS)}")
        self.preconditioning = PRECONDITIONINGS[precond]
        model_type = model_type or self.preconditioning.default_network
        if model_type not in NETWORKS:
            raise ValueError(f"model_type is {model_type!r}; allowed: {', '.join(NETWORKS)}")
        self.shape, self.label_dim, self.sigma_data = (
            (img_channels, img_resolution, img_resolution),
            label_dim,
            sigma_data,
        )
        self.model = NETWORKS[model_type](img_resolution, img_channels, img_channels, label_dim, **network_arguments)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        c = self.preconditioning.coefficients(sigma, self.sigma_data)
        classes = None
        if self.label_dim:
            classes = torch.zeros(1, self.label_dim, device=x.device)
            if class_labels is not None:
                classes = (class_labels[:, None] == torch.arange(self.label_dim, device=x.device)).float()
        return per_image(c.skip) * x + per_image(c.out) * self.model(per_image(c.in_) * x, c.noise, classes)


def per_image(value: Tensor | float) -> Tensor | float:
    """[n] → [n, 1, 1, 1], to multiply images with."""
    return value if isinstance(value, float) else value[:, None, None, None]
