"""Solver → Plan: the solver's own code, run once over coefficient vectors instead of images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sampler.calibration.solvers.base import Scheme, Step, after, base_step
from edge_sampler.runtime.plan import Plan, nested

AFS = "-afs"  # ends the name of a solver whose first step is analytical


def trace(scheme: Scheme, gammas: Sequence[Sequence[float]] = ()) -> Plan:
    """Makes the plan of a solver on one grid, by running it over coefficient vectors.

    A vector's entry 0 is the weight of the unit noise, entry j + 1 that of the j-th denoised image; the first of these
    is the scheme's mean, where it has one.

    Args:
        scheme: the solver, and its grid.
        gammas: the i-th step's correction: γ of arXiv 2304.11328, one number for each of its directions. By
            default none, the fixed solver.

    Returns:
        The plan, without a report.

    Examples:
        >>> from edge_sampler.calibration.solvers import find
        >>> from edge_sampler.calibration.solvers.base import Scheme
        >>> from edge_sampler.calibration.trace import trace
        >>> trace(Scheme(find("heun"), [80.0, 2.5, 0.0], nfe=3)).nfe
        3
    """
    name, afs, clip = scheme.solver.name, scheme.mean is not None, scheme.solver.clip
    nfe, each = scheme.nfe - afs, 2 if clip else 1
    units = np.eye(1 + afs + each * nfe)
    told: list[float] = []
    rows: list[tuple[float, ...]] = []

    def record(x: np.ndarray, sigma: float) -> np.ndarray:
        assert len(told) < nfe, f"{name} evaluates more often than {nfe} times"
        place = 1 + afs + each * len(told)
        rows.append(tuple(np.asarray(x)[:place].tolist()))
        told.append(float(sigma))
        answer = units[place].view(Answer)
        answer.clipped = units[place + 1] if clip else None
        return answer

    answers = after([units[1]] if afs else [], record)
    start, step = scheme.sigmas[0] * units[0], corrected_by(gammas) if gammas else base_step
    images = replace(scheme, mean=None).run(answers, start, step)
    assert len(told) == nfe, f"{name} evaluates {len(told)} times instead of {nfe}"
    mean, last = nested(scheme.mean) if afs else (), np.asarray(images)
    assert not (afs and clip) or np.abs(mean).max() <= clip, f"the mean that {name} starts from is not clipped"
    return Plan(name + AFS * afs, tuple(told), (*rows, tuple(last.tolist())), mean=mean, clip=clip)


class Answer(np.ndarray):
    """A unit vector that stands for an answer of the network; clipped, it is the unit vector of the next column."""

    clipped: np.ndarray | None = None

    def clip(self, low: Any, high: Any) -> Any:  # type: ignore[override]
        assert self.clipped is not None, "a solver that clips says so"
        return self.clipped


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
