"""iPNDM (Zhang & Chen, arXiv 2204.13902, appendix) and SPNDM (arXiv 2304.11328, its reference), and IIA upon them.

Both use, as published, the Adams-Bashforth weights of equal steps on grids whose steps are not: on a smooth grid,
where neighbouring steps differ by O(h), that leaves order 2. IIA's form is read as for DDIM: the same two differences.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edge_sampler.calibration.solvers.base import Denoise, Evaluation, Solver, Step, differences, multistep

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def adams_bashforth(past: list[Evaluation], sigma_next: float, order: int) -> Any:
    """x + (σ' - σ)·Σ w_j·d_{i-j}, with as many terms as there are evaluations, ``order`` at the most."""
    now, weights = past[0], ADAMS_BASHFORTH[min(order, len(past)) - 1]
    slope = weights[0] * now.d
    for weight, evaluation in zip(weights[1:], past[1:], strict=False):
        slope = slope + weight * evaluation.d
    return now.x + (sigma_next - now.sigma) * slope


def ipndm(past: list[Evaluation], sigma_next: float) -> Any:
    return adams_bashforth(past, sigma_next, order=4)


def spndm(denoise: Denoise, x: Any, sigmas: Sequence[float], step: Step, history: int, nfe: int | None = None) -> Any:
    """Order 2: the first step averages d at both of its ends (two evaluations), later ones take ½(3d_i - d_{i-1}).

    Where ``nfe`` pays for one evaluation a step only (nfe 1 and 2), the first step is Euler's.
    """
    past: list[Evaluation] = []
    for sigma, sigma_next in pairwise(sigmas):
        past.insert(0, Evaluation(sigma, x, denoise(x, sigma)))
        base = adams_bashforth(past, sigma_next, order=2) if sigma_next > 0 else past[0].denoised
        if len(past) == 1 and sigma_next > 0 and (nfe is None or nfe >= len(sigmas)):
            ahead = Evaluation(sigma_next, base, denoise(base, sigma_next))
            base = x + (0.5 * (sigma_next - sigma)) * (past[0].d + ahead.d)
        x = step(base, differences(past, history))
    return x


def spndm_steps(nfe: int) -> int:
    return nfe - 1 if nfe > 2 else nfe


SOLVERS = (
    Solver("ipndm", multistep(ipndm), order=2),
    Solver("iia-ipndm", multistep(ipndm), order=2, history=1),
    Solver("spndm", spndm, order=2, steps=spndm_steps),
    Solver("iia-spndm", spndm, order=2, steps=spndm_steps, history=1),
)
