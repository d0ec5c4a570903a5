"""DEIS (Zhang & Chen, arXiv 2204.13902, section 3.2: tAB-DEIS), the polynomial taken in ln σ as diffusers does."""

import math
from typing import Any

import numpy as np

from edge_sampler.calibration.solvers.base import Evaluation, Solver, multistep

ORDER = 3


def deis(past: list[Evaluation], sigma_next: float) -> Any:
    """x + Σ w_j·d_{i-j}: the integral from σ to σ' of the polynomial in ln σ through up to three past d.

    The weights make it exact for 1, u and u², u = ln(τ/σ): Σ w_j·u_j^k = ∫ u^k dτ. As diffusers' ``DEISMultistep``
    without thresholding; the original code takes the polynomial in the diffusion time instead.
    """
    now, used = past[0], past[:ORDER]
    scale = math.log(now.sigma / sigma_next)
    moments = [sigma_next - now.sigma]
    for k in range(1, len(used)):  # by parts
        moments.append((-1.0) ** k * sigma_next - k / scale * moments[-1])
    places = np.array([math.log(evaluation.sigma / now.sigma) / scale for evaluation in used])
    weights = np.linalg.solve(np.vander(places, increasing=True).T, moments).tolist()
    x = now.x
    for weight, evaluation in zip(weights, used, strict=True):
        x = x + weight * evaluation.d
    return x


SOLVERS = (Solver("deis", multistep(deis), order=3),)
