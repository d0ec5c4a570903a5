"""Pretrained diffusion networks behind one contract: ``denoised = model(x, sigma, class_labels=None)``."""

from models.precond import Denoiser, ModelSpec
from models.zoo import ZOO, load

__all__ = ["ZOO", "Denoiser", "ModelSpec", "load"]
