"""DPM-Solver++(2M) and (3M) (Lu et al., arXiv 2211.01095, algorithm 2 and appendix B), and IIA upon the first.

The paper of IIA names the combination without its formula; it is read as for DDIM: the same two differences.
"""

import math
from itertools import pairwise
from typing import Any

from edge_sampler.calibration.solvers.base import Evaluation, Solver, multistep


def dpmpp_2m(past: list[Evaluation], sigma_next: float) -> Any:
    """(σ'/σ)·x - (e^{-h} - 1)·[D_i + (D_i - D_{i-1})/(2r)], h = ln(σ/σ'), r = h_{i-1}/h; first order at first."""
    now = past[0]
    h = math.log(now.sigma / sigma_next)
    target = now.denoised
    if len(past) > 1:
        r = math.log(past[1].sigma / now.sigma) / h
        target = (1 + 1 / (2 * r)) * now.denoised + (-1 / (2 * r)) * past[1].denoised
    return (sigma_next / now.sigma) * now.x + -math.expm1(-h) * target


def dpmpp_3m(past: list[Evaluation], sigma_next: float) -> Any:
    """The same with D's second difference: + φ₂·D' - φ₃·D'', φ₂ = (e^{-h} - 1)/h + 1, φ₃ = φ₂/h - ½; (2M) at second.

    As in the authors' code and diffusers, D'' is the divided difference, half of the second derivative that φ₃ asks
    for: the order is therefore 2 (measured 2.2; twice that term gives 3.0). k-diffusion's second step differs.
    """
    if len(past) < 3:
        return dpmpp_2m(past, sigma_next)
    now = past[0]
    h = math.log(now.sigma / sigma_next)
    r0, r1 = (math.log(older.sigma / newer.sigma) / h for newer, older in pairwise(past[:3]))
    near = (1 / r0) * (now.denoised + -1.0 * past[1].denoised)
    far = (1 / r1) * (past[1].denoised + -1.0 * past[2].denoised)
    first = near + (r0 / (r0 + r1)) * (near + -1.0 * far)
    second = (1 / (r0 + r1)) * (near + -1.0 * far)
    phi2 = math.expm1(-h) / h + 1
    return (sigma_next / now.sigma) * now.x + -math.expm1(-h) * now.denoised + phi2 * first + (0.5 - phi2 / h) * second


SOLVERS = (
    Solver("dpmpp-2m", multistep(dpmpp_2m), order=2),
    Solver("dpmpp-3m", multistep(dpmpp_3m), order=2),
    Solver("iia-dpmpp-2m", multistep(dpmpp_2m), order=2, history=1, aliases=("iia-dpmpp",)),
)
