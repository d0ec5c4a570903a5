"""Runs exported samplers on a device: NumPy and one engine library, no PyTorch.

with runtime.load("artifacts/edm-digits-iia-ddim-afs-nfe10") as sampler:
    images = sampler.sample(seeds=range(64))
"""

from runtime.errors import UserError
from runtime.sampler import Sampler, load

__all__ = ["Sampler", "UserError", "load"]
