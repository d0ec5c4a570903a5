"""DPM-Solver-2 (Lu et al., arXiv 2206.00927, algorithm 1 with r = ½), a single-step solver of two evaluations."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from edge_sampler.calibration.solvers.base import Denoise, Evaluation, Solver, Step
from edge_sampler.calibration.solvers.heun import euler_interval, heun_steps


def dpm_solver_2(
    denoise: Denoise, x: Any, sigmas: Sequence[float], step: Step, history: int, nfe: int | None = None
) -> Any:
    """x + (σ' - σ)·d_s, d_s taken at s = √(σσ') after an Euler step; a step to σ = 0 is Euler's alone.

    In σ this is k-diffusion's ``sample_dpm_2``. An even ``nfe`` takes one Euler step, where EDM's Heun does.
    """
    single = euler_interval(sigmas, nfe)
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        now = Evaluation(sigma, x, denoise(x, sigma))
        if sigma_next > 0 and index != single:
            middle = math.sqrt(sigma * sigma_next)
            halfway = x + (middle - sigma) * now.d
            x = step(x + (sigma_next - sigma) * Evaluation(middle, halfway, denoise(halfway, middle)).d, [])
        else:
            x = step(x + (sigma_next - sigma) * now.d if sigma_next > 0 else now.denoised, [])
    return x


SOLVERS = (Solver("dpm-solver-2", dpm_solver_2, order=2, steps=heun_steps),)
