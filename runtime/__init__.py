"""Runs exported samplers on a device: NumPy and one engine library, no PyTorch.

with edge_sampler.load("artifacts/edm-digits-iia-ddim-afs-nfe10") as sampler:
    images = sampler.sample(seeds=range(64))
"""

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.sampler import Sampler, load

__all__ = ["Sampler", "UserError", "load"]
