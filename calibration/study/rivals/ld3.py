"""LD3: a solver's noise levels learned through it (Tong et al., Learning to Discretize Denoising Diffusion ODEs,
arXiv 2405.15506).

A level and the one that the network is told there are learned apart. So few numbers cannot take every noise where the
teacher takes it; so a fitting noise may move within a small ball, to one from where the solver gets there. The authors'
ball has the radius 0.001·d/NFE², for d pixels, and their solvers start from levels uniform in ln σ. Here it is the best
fixed solver that starts from its own, and with an analytical first step where that is best.
"""

from dataclasses import replace

import numpy as np

from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.fixed import best_scheme
from edge_sampler.calibration.study.rivals.learn import JUDGED_EVERY, Lesson, learn
from edge_sampler.calibration.trace import trace
from edge_sampler.runtime.plan import Plan

RATES = (0.005, 0.015)
ITERATIONS = 150
RADIUS = 0.001  # times pixels, over the square of NFE


def ld3(contest: Contest, iterations: int = ITERATIONS, judged_every: int = JUDGED_EVERY) -> Plan:
    scheme = best_scheme(contest, afs=True)
    lesson = Lesson(
        name="LD3",
        plan_of=lambda parameters: plan_of(parameters, scheme),
        start=parameters_of(scheme),
        loss=lambda errors: errors.clamp_min(1e-12).sqrt().mean(),
        rates=RATES,
        iterations=iterations,
        judged_every=judged_every,
        radius=RADIUS * contest.noises.noise[0].numel() / contest.nfe**2,
    )
    return learn(contest, lesson)


def parameters_of(scheme: Scheme) -> np.ndarray:
    """The logarithms of how far ln σ falls from each level to the next above 0, then what is told beside each: 0."""
    above = [sigma for sigma in scheme.sigmas if sigma > 0]
    return np.concatenate([np.log(-np.diff(np.log(above))), np.zeros(trace(scheme).nfe)])


def plan_of(parameters: np.ndarray, scheme: Scheme) -> Plan:
    """The scheme's solver on other levels, and the logarithm of each level that is told shifted."""
    count = sum(sigma > 0 for sigma in scheme.sigmas) - 1
    falls, shifts = np.exp(parameters[:count]), parameters[count:]
    sigmas = scheme.sigmas[0] * np.exp(-np.cumsum([0.0, *falls]))
    plan = trace(replace(scheme, sigmas=[*sigmas.tolist(), *[0.0] * (scheme.sigmas[-1] == 0)]))
    return replace(plan, sigmas=tuple((np.array(plan.sigmas) * np.exp(shifts)).tolist()))
