"""Joint refinement: Gauss-Newton over every number of a plan, on the error of its final images.

A plan is a table, so there is nothing else to choose in a sampler: noise levels told to the network, states' scales and
weights of past evaluations are all entries of it. Refinement is Levenberg-Marquardt (Moré 1978) over all of them at
once, started from a fitted plan, and ends in a plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from calibration.cache import Cache
from calibration.distributed import BLOCK, total
from calibration.fit import rms
from calibration.network import Network
from calibration.noises import Noises
from models.progress import ProgressBars, silent
from runtime.plan import Plan, sample, weighted_sum

PROBE = 0.03  # size of finite differences, in units of the noise level that they disturb
DAMPING = 1e-3  # at first; relative to the diagonal
DAMPINGS = (0.03, 0.3, 3.0, 30.0)  # times the last one, tried each time


@dataclass(frozen=True)
class Refinement:
    """How far one iteration has come: the plan, its damping, and the images' RMS error on the held-out noises."""

    plan: Plan
    damping: float
    error: float


def refine(
    plan: Plan, noises: Noises, converged: Tensor, iterations: int, cache: Cache, progress: ProgressBars = silent
) -> list[Refinement]:
    """``plan`` and what each iteration made of it, the last being the best; converged [n, …] are the images to reach.

    Derivatives are taken on the noises that fit: a quarter of them for the first half of the way, then half, then all.
    Of four dampings the one that is best on the held-out noises is taken; none that makes them worse.
    """
    heldout, goal = noises.heldout, converged[noises.fitting :]
    spec = noises.network.model.spec
    limits = (spec.sigma_min, spec.sigma_max)
    steps = [Refinement(plan, DAMPING, rms(sample(heldout.network, heldout.noise, plan) - goal))]
    for iteration in range(iterations):
        fraction = (4, 4, 4, 2, 1, 1)[6 * iteration // iterations]
        used = noises.part(slice(0, -(-noises.fitting // fraction)))
        last = steps[-1]
        cost = evaluations(plan.nfe) * len(used) + len(DAMPINGS) * plan.nfe * len(heldout)
        with progress(f"refinement {iteration + 1} of {iterations}", cost) as noises.network.meter.progress:
            matrix, slope = normal_equations(used, converged, last.plan, cache)
            tried = []
            for damping in (last.damping * factor for factor in DAMPINGS):
                moved = step(last.plan, matrix, slope, damping, limits)
                tried.append(Refinement(moved, damping, rms(sample(heldout.network, heldout.noise, moved) - goal)))
        best = min(tried, key=lambda refinement: refinement.error)
        if not best.error < last.error:
            best = Refinement(last.plan, last.damping * 100, last.error)
        steps.append(best)
    return steps


def step(plan: Plan, matrix: np.ndarray, slope: np.ndarray, damping: float, limits: tuple[float, float]) -> Plan:
    """The damped Gauss-Newton step from ``plan``, the noise levels that it tells kept within ``limits``."""
    length = np.sqrt(np.diag(matrix))
    length = np.where(length > 0, length, 1.0)
    change = np.linalg.solve(matrix / np.outer(length, length) + damping * np.eye(len(length)), slope / length) / length
    return with_parameters(plan, parameters(plan) - change, limits)


def normal_equations(noises: Noises, converged: Tensor, plan: Plan, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """JᵀJ [p, p] and Jᵀr [p], summed over images, pixels and processes; kept block by block."""

    def sums(block: Noises, goal: Tensor) -> dict[str, np.ndarray]:
        images, derivative = derivatives(block.network, block.noise, plan)
        flat = torch.cat([derivative, (images - goal)[None]]).flatten(1)
        return {"products": (flat @ flat.T).cpu().numpy()}

    products = sum(
        cache.recall({"normal equations": block.key, "plan": plan.sha256}, partial(sums, block, goal))["products"]
        for block, goal in zip(noises.blocks(), converged[: len(noises)].split(BLOCK), strict=True)
    )
    summed = total(np.asarray(products))
    return summed[:-1, :-1], summed[:-1, -1]


def parameters(plan: Plan) -> np.ndarray:
    """The plan as one vector: for each evaluation its row of the table and ln σ, then the images' row."""
    levels = [[np.log(sigma)] for sigma in plan.sigmas]
    return np.concatenate([part for row, level in zip(plan.table, [*levels, []], strict=True) for part in (row, level)])


def with_parameters(plan: Plan, values: np.ndarray, limits: tuple[float, float] = (0.0, np.inf)) -> Plan:
    """The inverse of ``parameters``; noise levels are clipped to ``limits``."""
    rows, sigmas, start = [], [], 0
    for k in range(plan.nfe + 1):
        rows.append(tuple(values[start : start + k + 1].tolist()))
        start += k + 1
        if k < plan.nfe:
            sigmas.append(float(np.clip(np.exp(values[start]), *limits)))
            start += 1
    return Plan(plan.solver, tuple(sigmas), tuple(rows), plan.calibration)


def evaluations(nfe: int) -> int:
    """What ``derivatives`` costs an image: at each evaluation one, one for each entry so far, one for each level."""
    return sum(1 + sum(row + 2 for row in range(k)) + (k + 1) + 1 for k in range(nfe))


def derivatives(network: Network, noise: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Images [n, …] of unit ``noise`` [n, …], and their derivatives [parameters, n, …], by forward differences.

    A change of row k reaches the images through evaluations k … nfe-1, which is what it costs (``evaluations``); one of
    the images' own row costs nothing.
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
