"""UniPC (Zhao et al., arXiv 2302.04867), data prediction, B₂(h) = e^h - 1, order 3; no thresholding."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from edge_sampler.calibration.solvers.base import Denoise, Evaluation, Solver, Step

ORDER = 3


def unified(past: Sequence[Evaluation], sigma_next: float, order: int, arrived: Any = None) -> Any:
    """From ``past``, newest first, to σ': UniP of that order (eq. 9), or UniC (eq. 5) given the image D' at σ'.

    Their weights solve Σ_m ρ_m·r_m^(k-1) = k!·φ_{k+1}(-h)·(-h) / (e^{-h} - 1) for k = 1, 2, …; r_m is where D_m
    stands, in units of the step h = ln(σ/σ').
    """
    now, older = past[0], past[1:order]
    h = math.log(now.sigma / sigma_next)
    places = [math.log(now.sigma / evaluation.sigma) / h for evaluation in older]
    known = [evaluation.denoised for evaluation in older]
    if arrived is not None:
        places, known = [*places, 1.0], [*known, arrived]
    x = (sigma_next / now.sigma) * now.x + -math.expm1(-h) * now.denoised
    for weight, place, denoised in zip(_weights(places, h), places, known, strict=True):
        x = x + (-math.expm1(-h) * weight / place) * (denoised + -1.0 * now.denoised)
    return x


def _weights(places: Sequence[float], h: float) -> list[float]:
    if len(places) == 1:
        return [0.5]  # as in the authors' code: the limit h → 0, which keeps the order
    phi, moments = -math.expm1(-h) / h, []
    for k in range(1, len(places) + 1):  # k!·φ_{k+1}(-h), from φ_{k+1}(z) = (φ_k(z) - 1/k!) / z
        phi = (1 - k * phi if k > 1 else 1 - phi) / h
        moments.append(phi * -h / math.expm1(-h))
    return np.linalg.solve(np.vander(places, increasing=True).T, moments).tolist()


def unipc(denoise: Denoise, x: Any, sigmas: Sequence[float], step: Step, history: int, nfe: int | None = None) -> Any:
    """Each evaluation first corrects the state that it was taken at, then predicts the next one.

    Orders rise 1, 2, 3 and fall again before σ = 0, as in the authors' code and diffusers' ``UniPCMultistep``.
    """
    past: list[Evaluation] = []
    order = 0
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        denoised = denoise(x, sigma)
        if past:
            x = unified(past, sigma, order, denoised)
        past.insert(0, Evaluation(sigma, x, denoised))
        order = min(ORDER, len(past), len(sigmas) - 1 - index)
        x = step(unified(past, sigma_next, order) if sigma_next > 0 else denoised, [])
    return x


SOLVERS = (Solver("unipc", unipc, order=3),)
