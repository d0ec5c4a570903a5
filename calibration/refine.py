"""Joint refinement: Gauss-Newton over every number of a plan, on the error of its final images.

A plan is a table, so there is nothing else to choose in a sampler: noise levels told to the network, states' scales and
weights of past evaluations are all entries of it. Refinement is Levenberg-Marquardt (Moré 1978) over all of them at
once, started from a fitted plan, and ends in a plan.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from calibration.fit import rms
from calibration.network import Network
from runtime.plan import Plan, sample, weighted_sum

PROBE = 0.03  # size of finite differences, in units of the noise level that they disturb
DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
CHUNK = 32  # noises whose derivatives are held at once


def parameters(plan: Plan) -> np.ndarray:
    """The plan as one vector: for each evaluation its row of the table and ln σ, then the images' row."""
    levels = [[np.log(sigma)] for sigma in plan.sigmas]
    return np.concatenate([part for row, level in zip(plan.table, [*levels, []], strict=True) for part in (row, level)])


def with_parameters(plan: Plan, values: np.ndarray) -> Plan:
    """The inverse of ``parameters``."""
    rows, sigmas, start = [], [], 0
    for k in range(plan.nfe + 1):
        rows.append(tuple(values[start : start + k + 1].tolist()))
        start += k + 1
        if k < plan.nfe:
            sigmas.append(float(np.exp(values[start])))
            start += 1
    return Plan(plan.solver, tuple(sigmas), tuple(rows), plan.calibration)


def derivatives(network: Network, noise: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Images [n, …] of unit ``noise`` [n, …], and their derivatives [parameters, n, …], by forward differences.

    A change of row k reaches the images through evaluations k … nfe-1, which is what it costs: (nfe³ + 12·nfe² +
    17·nfe)/6 evaluations an image. The images' own row costs nothing.
    """
    n, shape = len(noise), noise.shape
    terms = [noise]
    tangents = [noise.new_zeros(0, *shape)]  # of each term, by the parameters that come before it

    def pushed(row: Sequence[float]) -> Tensor:
        """d(Σ row·terms): what earlier parameters do through the terms, then what each entry of the row does."""
        through = noise.new_zeros(len(tangents[-1]), *shape)
        for weight, tangent in zip(row, tangents, strict=True):
            through[: len(tangent)] += weight * tangent
        return torch.cat([through, torch.stack(terms)])

    for sigma, row in zip(plan.sigmas, plan.table, strict=False):
        x, dx = weighted_sum(row, terms), pushed(row)
        size = dx.flatten(1).square().mean(1).sqrt()
        step = (PROBE * sigma / size.clamp_min(1e-30)).view(-1, *[1] * len(shape))
        denoised = network(torch.cat([x, (x + step * dx).flatten(0, 1)]), sigma)
        louder = network(x, sigma * (1 + PROBE))
        terms.append(denoised[:n])
        changed = (denoised[n:].view_as(dx) - denoised[:n]) / step
        tangents.append(torch.cat([changed, (louder - denoised[:n])[None] / np.log1p(PROBE)]))
    return weighted_sum(plan.table[-1], terms), pushed(plan.table[-1])
