"""Fréchet distance between sets of images in a classifier's features (Heusel et al., arXiv 1706.08500, eq. 6).

With our Fashion-MNIST classifier it is FD-fashion. It is not FID, whose network, images and scale are others.
"""

import numpy as np
from scipy.linalg import sqrtm

from edge_sampler.models.networks.classifier import Statistics


def distance(one: Statistics, other: Statistics) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½)."""
    first, second = one.covariance.numpy(), other.covariance.numpy()
    shared = np.trace(sqrtm(first @ second).real)
    apart = (one.mean - other.mean).square().sum().item()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)
