"""BNS: every coefficient of a sampler learned (Shaul et al., Bespoke Non-Stationary Solvers, arXiv 2403.01329).

On the straight path x̂ = (1 - τ)·data + τ·noise, with velocities û_j = noise - data as the network sees them,

    x̂_{i+1} = a_i·x̂_0 + Σ_{j≤i} b_ij·û_j,

and the noise levels, the a_i and the b_ij are free: a table of our own form, without an analytical first step. Adam
lowers the mean of the images' log squared error (their equation for PSNR). It starts from a solver; here from the best
fixed one, where the authors take Euler's or the midpoint method.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.fixed import best_scheme
from edge_sampler.calibration.study.rivals.learn import JUDGED_EVERY, Lesson, learn
from edge_sampler.calibration.trace import trace
from edge_sampler.runtime.plan import Plan

RATES = (0.005, 0.015)
ITERATIONS = 300


def bns(contest: Contest, iterations: int = ITERATIONS, judged_every: int = JUDGED_EVERY) -> Plan:
    start = trace(best_scheme(contest, afs=False))
    highest = start.sigmas[0]
    lesson = Lesson(
        name="BNS",
        plan_of=lambda parameters: replace(plan_of(parameters, contest.nfe, highest), solver=start.solver),
        start=parameters_of(start),
        loss=lambda errors: errors.clamp_min(1e-12).log().mean(),
        rates=RATES,
        iterations=iterations,
        judged_every=judged_every,
    )
    return learn(contest, lesson)


def basis(states: Sequence[np.ndarray], sigmas: Sequence[float]) -> np.ndarray:
    """[states + 1, size]: x̂_0, then each û_j, as weights of the unit noise and of denoised images.

    ``states`` [size] are those at which the network is asked, as such weights, at these noise levels.
    """
    units = np.eye(len(states[0]))
    found = [sigmas[0] / (1 + sigmas[0]) * units[0]]
    for unit, state, sigma in zip(units[1:], states, sigmas, strict=False):
        found.append((state / (1 + sigma) - unit) * (1 + sigma) / sigma)
    return np.array(found)


def parameters_of(plan: Plan) -> np.ndarray:
    """ln σ of every level but the first, then row by row a_i and b_ij; x_0 is noise of the first level."""
    size = plan.nfe + 1
    rows = [np.pad(np.array(row), (0, size - len(row))) for row in plan.table]
    known, weights = basis(rows[:-1], plan.sigmas), []
    for k, (row, sigma) in enumerate(zip(rows[1:], [*plan.sigmas[1:], 0.0], strict=True), start=1):
        weights.append(np.linalg.solve(known[: k + 1, : k + 1].T, row[: k + 1] / (1 + sigma)))
    return np.concatenate([np.log(plan.sigmas[1:]), *weights])


def plan_of(parameters: np.ndarray, nfe: int, highest: float) -> Plan:
    """The inverse of ``parameters_of``, of a plan of ``nfe`` evaluations from ``highest`` down."""
    sigmas, weights = [highest, *np.exp(parameters[: nfe - 1]).tolist()], parameters[nfe - 1 :]
    rows = [highest * np.eye(nfe + 1)[0]]
    for k, sigma in enumerate([*sigmas[1:], 0.0], start=1):
        rows.append((1 + sigma) * (weights[: k + 1] @ basis(rows, sigmas)))
        weights = weights[k + 1 :]
    return Plan("bns", tuple(sigmas), tuple(tuple(row[: k + 1].tolist()) for k, row in enumerate(rows)))
