"""Solver → Plan: the solver's own code, run once over coefficient vectors instead of images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calibration.solvers.base import Scheme, Step, base_step
from runtime.plan import Plan


def trace(scheme: Scheme, gammas: Sequence[Sequence[float]] = (), calibration: Mapping[str, Any] | None = None) -> Plan:
    """The plan of ``scheme``, its i-th step corrected by ``gammas[i]``.

    A vector's entry 0 is the weight of the unit noise, entry j + 1 that of the j-th denoised image.
    """
    name, nfe = scheme.solver.name, scheme.nfe
    told: list[float] = []
    rows: list[tuple[float, ...]] = []

    def record(x: np.ndarray, sigma: float) -> np.ndarray:
        assert len(told) < nfe, f"{name} evaluates more often than {nfe} times"
        told.append(float(sigma))
        rows.append(tuple(x[: len(told)].tolist()))
        return np.eye(nfe + 1)[len(told)]

    noise = np.zeros(nfe + 1)
    noise[0] = scheme.sigmas[0]
    images = scheme.run(record, noise, corrected_by(gammas) if gammas else base_step)
    assert len(told) == nfe, f"{name} evaluates {len(told)} times instead of {nfe}"
    return Plan(name, tuple(told), (*rows, tuple(images.tolist())), calibration or {})


def corrected_by(gammas: Sequence[Sequence[float]]) -> Step:
    """The hook that adds to the i-th step its fitted correction, ``gammas[i]``."""
    remaining = iter(gammas)
    return lambda base, directions: correct(base, directions, next(remaining))


def correct(base: Any, directions: Sequence[Any], gamma: Sequence[float]) -> Any:
    """base + Σ γ_j·direction_j."""
    for weight, direction in zip(gamma, directions, strict=True):
        if weight:
            base = base + weight * direction
    return base
