"""What a model is, and whether it removes noise."""

import math

import numpy as np
import torch

from edge_sampler.models import checkpoint
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.listing import size
from edge_sampler.models.onnx_graph import OnnxGraph
from edge_sampler.runtime.condition import CLASSES
from edge_sampler.runtime.errors import BoundError
from edge_sampler.runtime.noise import unit_noise

CHECK_STREAM = 3  # of noise
CHECKED_LEVELS, CHECKED_IMAGES = 6, 16
MOST_LEFT = 1.1  # of the noise; where images are clear beside it, a good network leaves just under 1
LEAST_LEVEL, HIGHEST_LEVEL = 0.02, 80.0  # of noise that are looked at; less is lost in rounding


def verify(model: Denoiser) -> None:
    """Prints what the model is, and its denoising errors. Raises BoundError when it leaves more noise than came."""
    spec = model.spec
    print(f"{spec.name}: {type(model.model).__name__} of {parameters(model)} parameters")
    print(f"{spec.output.name} {size(spec.inputs.shape)}")
    for name, one in spec.called_with.conditions.items():
        print(f"takes {name}: {one.wanted()}")
    print(f"licence {spec.licence}; noise levels {spec.sigma_min:g} to {spec.sigma_max:g}")
    if not isinstance(model.model, OnnxGraph):
        print(f"shapes SHA-256  {checkpoint.shapes_sha256(model.state_dict())}")
    print(f"weights SHA-256 {spec.weights_sha256}")
    errors = denoising_errors(model)
    if odd := [sigma for sigma, error in errors.items() if not math.isfinite(error)]:
        raise BoundError(f"{spec.name} returned NaN or infinity at noise level {odd[0]:.4g}; its weights are unusable")
    for sigma, error in errors.items():
        print(f"noise level {sigma:8.3f}: of the noise, {error:.3f} is left")
    if not max(errors.values()) < MOST_LEFT:
        raise BoundError(
            f"{spec.name} leaves more noise than came: its weights are untrained or of something else, or precond and "
            "its arguments do not describe it"
        )


@torch.inference_mode()
def denoising_errors(model: Denoiser) -> dict[float, float]:
    """By noise level, the RMS error of denoised images, as a part of the noise that was added to them.

    The images are the model's own: what it made of the noise of the level before, of black ones at first.
    """
    spec = model.spec
    raw = model.draw_raw(range(CHECKED_IMAGES))
    if spec.classes:
        raw[CLASSES] = np.arange(CHECKED_IMAGES) % spec.classes
    conditions = model.encode(raw)
    images, errors = torch.zeros(CHECKED_IMAGES, *spec.shape), {}
    levels = np.geomspace(min(spec.sigma_max, HIGHEST_LEVEL), max(spec.sigma_min, LEAST_LEVEL), CHECKED_LEVELS).tolist()
    for k, sigma in enumerate(levels):
        seeds = range(k * CHECKED_IMAGES, (k + 1) * CHECKED_IMAGES)
        noise = torch.from_numpy(unit_noise(seeds, spec.shape, CHECK_STREAM)).float()
        denoised = model(images + sigma * noise, sigma, **conditions)
        errors[sigma] = (denoised - images).square().mean().sqrt().item() / sigma
        images = denoised
    return errors


def parameters(model: Denoiser) -> str:
    graphs = sum(one.numbers for one in model.modules() if isinstance(one, OnnxGraph))
    count = graphs + sum(p.numel() for p in model.parameters())
    return f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count:,}"
