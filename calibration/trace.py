"""Solver → Plan: the solver's own code, run once over coefficient vectors instead of images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sampler.calibration.solvers.base import Scheme, Step, base_step
from edge_sampler.runtime.plan import Plan, nested

AFS = "-afs"  # ends the name of a solver whose first step is analytical


def trace(scheme: Scheme, gammas: Sequence[Sequence[float]] = ()) -> Plan:
    """The plan of ``scheme``, its i-th step corrected by ``gammas[i]``.

    A vector's entry 0 is the weight of the unit noise, entry j + 1 that of the j-th denoised image; the first of these
    is the scheme's mean, where it has one.
    """
    name, afs = scheme.solver.name, scheme.mean is not None
    nfe = scheme.nfe - afs
    units = np.eye(scheme.nfe + 1)
    told: list[float] = []
    rows: list[tuple[float, ...]] = []

    def record(x: np.ndarray, sigma: float) -> np.ndarray:
        assert len(told) < nfe, f"{name} evaluates more often than {nfe} times"
        rows.append(tuple(x[: 1 + afs + len(told)].tolist()))
        told.append(float(sigma))
        return units[afs + len(told)]

    over_vectors = replace(scheme, mean=units[1]) if afs else scheme
    images = over_vectors.run(record, scheme.sigmas[0] * units[0], corrected_by(gammas) if gammas else base_step)
    assert len(told) == nfe, f"{name} evaluates {len(told)} times instead of {nfe}"
    mean = nested(scheme.mean) if afs else ()
    return Plan(name + AFS * afs, tuple(told), (*rows, tuple(images.tolist())), mean=mean)


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
