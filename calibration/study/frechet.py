"""Distances of sets of images in a classifier's features: Fréchet distance, and precision and recall.

The distance is that of Heusel et al. (arXiv 1706.08500, eq. 6). With our Fashion-MNIST classifier it is FD-fashion. It
is not FID, whose network, images and scale are others.
"""

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from edge_sampler.models.networks.classifier import Statistics

NEIGHBOURS = 3  # the k of the k-th nearest
ROWS = 1000  # between which and all others distances are there at once


def distance(one: Statistics, other: Statistics) -> float:
    """|μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2(Σ₁Σ₂)^½)."""
    first, second = one.covariance.numpy(), other.covariance.numpy()
    shared = np.trace(sqrtm(first @ second).real)
    apart = (one.mean - other.mean).square().sum().item()
    return float(apart + np.trace(first) + np.trace(second) - 2 * shared)


def precision_and_recall(made: Tensor, real: Tensor) -> tuple[float, float]:
    """Of features [n, d] and [m, d] (Kynkäänniemi et al., arXiv 1904.06991, eq. 1 and 2).

    Precision is the part of the made images that lie within a real one's distance to its third nearest real one, recall
    the part of the real ones that lie within a made one's to its third nearest made one. Both depend on n and m.
    """
    return covered(made, real), covered(real, made)


def covered(points: Tensor, by: Tensor) -> float:
    """The part of ``points`` that lies within the distance of a point of ``by`` to its k-th nearest of the others."""
    nearest = min(NEIGHBOURS + 1, len(by))  # itself is the first
    radii = torch.cat([apart(rows, by).kthvalue(nearest).values for rows in torch.split(by, ROWS)])
    return torch.cat([(apart(rows, by) <= radii).any(1) for rows in torch.split(points, ROWS)]).double().mean().item()


def apart(some: Tensor, others: Tensor) -> Tensor:
    """Distances [n, m], exact: products would lose small ones."""
    return torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")
