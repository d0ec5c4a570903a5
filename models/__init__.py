"""Pretrained diffusion networks behind one contract: ``denoised = model(x, sigma, class_labels=None)``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sampler.models.denoiser import Denoiser
    from edge_sampler.models.loading import load
    from edge_sampler.models.own import adapt
    from edge_sampler.models.spec import ModelSpec
    from edge_sampler.models.zoo import ZOO

__all__ = ["ZOO", "Denoiser", "ModelSpec", "adapt", "load"]
HOMES = {"Denoiser": "denoiser", "ModelSpec": "spec", "ZOO": "zoo", "adapt": "own", "load": "loading"}


def __getattr__(name: str) -> Any:
    """Imports late, since PyTorch takes a second, and ``models.progress`` does without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"edge_sampler.models.{HOMES[name]}"), name)
