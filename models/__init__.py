"""Pretrained diffusion networks behind one contract: ``denoised = model(x, sigma, class_labels=None)``."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.denoiser import Denoiser, ModelSpec
    from models.loading import load
    from models.own import adapt
    from models.zoo import ZOO

__all__ = ["ZOO", "Denoiser", "ModelSpec", "adapt", "load"]
HOMES = {"ZOO": "models.zoo", "load": "models.loading", "adapt": "models.own"}  # the others' is models.denoiser


def __getattr__(name: str) -> Any:
    """Imports late, since PyTorch takes a second, and ``models.progress`` does without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES.get(name, "models.denoiser")), name)
