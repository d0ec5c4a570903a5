"""Runs exported samplers on a device: NumPy and one engine library, no PyTorch.

with edge_sampler.load("artifacts/edm-digits-auto-nfe10") as sampler:
    images = sampler.sample(seeds=range(64))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_sampler.runtime.errors import UserError
    from edge_sampler.runtime.sampler import Sampler, load

__all__ = ["Sampler", "UserError", "load"]


def __getattr__(name: str) -> Any:
    """Imports late: a command line is there before NumPy is, and says itself what goes wrong."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"edge_sampler.runtime.{'errors' if name == 'UserError' else 'sampler'}"), name)
