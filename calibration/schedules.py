"""Noise-level grids, float64: ``steps`` levels from sigma_max down to sigma_min, then 0."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from edge_sampler.models.precond import VP_BETA_D, VP_BETA_MIN, vp_sigma
from edge_sampler.runtime.errors import UserError

RHO = 7.0

Schedule = Callable[[int, float, float], list[float]]


def edm(steps: int, sigma_min: float, sigma_max: float, rho: float = RHO) -> list[float]:
    """Uniform in σ^(1/ρ): Karras et al., arXiv 2206.00364, eq. 5."""
    return [*(np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho).tolist(), 0.0]


def logarithmic(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Uniform in log σ, the half log signal-to-noise ratio: DPM-Solver, arXiv 2206.00927, section 3.4."""
    return [*np.geomspace(sigma_max, sigma_min, steps).tolist(), 0.0]


def vp(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Uniform in the time of the variance-preserving process: Song et al., arXiv 2011.13456, eq. 32."""

    def time(sigma: float) -> float:
        return (math.sqrt(VP_BETA_MIN**2 + 2 * VP_BETA_D * math.log1p(sigma**2)) - VP_BETA_MIN) / VP_BETA_D

    return [*(vp_sigma(t) for t in np.linspace(time(sigma_max), time(sigma_min), steps)), 0.0]


def flow(steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Uniform in rectified flow's time t = σ/(1 + σ) (arXiv 2209.03003), which ends at 0 whatever the least level."""
    times = np.linspace(sigma_max / (1 + sigma_max), 0, steps + 1)[:-1]
    return [sigma_max, *(times / (1 - times)).tolist()[1:], 0.0]


SCHEDULES: dict[str, Schedule] = {
    "edm": edm,
    "edm-rho3": partial(edm, rho=3.0),
    "edm-rho14": partial(edm, rho=14.0),
    "log": logarithmic,  # variance-exploding processes' own (2206.00364, Table 1)
    "vp": vp,
    "flow": flow,
}


def subdivide(sigmas: list[float], substeps: int) -> list[float]:
    """Each interval cut into ``substeps``, uniformly in σ^(1/7); the given levels stay, exactly.

    Beyond σ = 80 the scale is bent, so that infinity is a short way off: from there on nearly all is noise.
    """
    if substeps < 2:
        raise UserError(f"an interval is cut into {substeps} fine steps; it takes at least 2")
    fine = [sigmas[0]]
    for start, end in pairwise(sigmas):
        inner = np.linspace(bent(start), bent(end), substeps + 1)[1:-1]
        fine += [*map(straight, inner.tolist()), end]
    return fine


BEND = 80.0  # where EDM's schedule starts
TOP = BEND ** (1 / RHO)


def bent(sigma: float) -> float:
    """σ^(1/7), which above ``BEND`` goes on with the same slope to a bound, as 1/σ goes to 0."""
    return sigma ** (1 / RHO) if sigma <= BEND else TOP + TOP / RHO * (1 - BEND / sigma)


def straight(value: float) -> float:
    """``bent`` backward."""
    return value**RHO if value <= TOP else BEND / (1 - (value - TOP) * RHO / TOP)
