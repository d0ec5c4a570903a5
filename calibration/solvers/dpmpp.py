"""DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2), and IIA upon it.

The paper of IIA names the combination without its formula; it is read as for DDIM: the same two differences.
"""

import math
from typing import Any

from calibration.solvers.base import Evaluation, Solver, multistep


def dpmpp_2m(past: list[Evaluation], sigma_next: float) -> Any:
    """(σ'/σ)·x - (e^{-h} - 1)·[D_i + (D_i - D_{i-1})/(2r)], h = ln(σ/σ'), r = h_{i-1}/h; first order at first."""
    now = past[0]
    h = math.log(now.sigma / sigma_next)
    target = now.denoised
    if len(past) > 1:
        r = math.log(past[1].sigma / now.sigma) / h
        target = (1 + 1 / (2 * r)) * now.denoised + (-1 / (2 * r)) * past[1].denoised
    return (sigma_next / now.sigma) * now.x + -math.expm1(-h) * target


SOLVERS = (
    Solver("dpmpp-2m", multistep(dpmpp_2m), order=2),
    Solver("iia-dpmpp-2m", multistep(dpmpp_2m), order=2, history=1),
)
