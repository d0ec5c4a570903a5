"""GITS: noise levels by dynamic programming (Chen et al., arXiv 2405.11326, section 4).

A teacher's fine trajectory tells what one Euler step between any two of its levels errs, at no evaluation more. The
levels are a path of so many steps with the least sum of errors, in which those of later steps count more by a factor.
The authors' settings: 60 fine steps of iPNDM on EDM's schedule, 256 noises, a factor of 1.15, errors that are
distances or that are departures from the straight line between a trajectory's ends. A flow has its own schedule here:
on EDM's, from its σ = 1e7 down, the last levels are too few. Which error, factor and solver
serve best is chosen on the held-out noises, and so is an analytical first step; theirs are among them.
"""

from itertools import product

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.schedules import SCHEDULES, edm
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, base_step
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.fixed import FIXED
from edge_sampler.calibration.trace import trace
from edge_sampler.runtime.plan import Plan

FINE = 61  # levels of the teacher
TEACHER = find("ipndm")
FACTORS = (1.0, 1.05, 1.1, 1.15, 1.2)
MEASURES = ("distance", "departure")
SOLVERS = tuple(solver for solver in FIXED if solver.once_a_step)


def gits(contest: Contest, fine: int = FINE) -> Plan:
    spec = contest.noises.network.model.spec
    levels = SCHEDULES.get(spec.schedule, edm)(fine, spec.sigma_min, spec.sigma_max)[:-1]
    spent = (fine - 1) * contest.noises.fitting
    costs = contest.recall({"what": "errors of steps", "levels": levels}, spent, lambda: costs_of(contest, levels))
    plans: list[Plan] = []
    for mean in (None, contest.mean):
        answers = contest.nfe + (mean is not None)
        paths = {tuple(path(costs[which], answers, factor)) for which, factor in product(MEASURES, FACTORS)}
        for places, solver in product(sorted(paths), SOLVERS):
            plans.append(trace(Scheme(solver, [levels[place] for place in places], answers, 0, mean)))
    return contest.best(plans)


def costs_of(contest: Contest, levels: list[float]) -> dict[str, np.ndarray]:
    """Each measure [levels, levels] of Euler steps from one level down to another, a mean over the fitting noises."""
    fitting = contest.noises.part(slice(contest.noises.fitting))
    summed, count = np.zeros((len(MEASURES), len(levels), len(levels))), 0
    for _, block in fitting.blocks():
        summed += step_errors(*trajectory(block.network, levels[0] * block.noise, levels), levels)
        count += len(block)
    means = total(summed) / total(np.array([count], float))
    means[:, np.tri(len(levels), dtype=bool)] = np.inf
    return dict(zip(MEASURES, means, strict=True))


def trajectory(network: Network, x: Tensor, levels: list[float]) -> tuple[Tensor, Tensor]:
    """The teacher's states [levels, n, …] from x at the first level on, and dx/dσ [levels - 1, n, …]."""
    states, slopes = [x], list[Tensor]()

    def denoise(state: Tensor, sigma: float) -> Tensor:
        denoised = network(state, sigma)
        slopes.append((state - denoised) / sigma)
        return denoised

    def keep(base: Tensor, directions: object) -> Tensor:
        states.append(base)
        return base_step(base, ())

    TEACHER.run(denoise, x, levels, keep, history=0)
    return torch.stack(states), torch.stack(slopes)


def step_errors(states: Tensor, slopes: Tensor, levels: list[float]) -> np.ndarray:
    """[measures, levels, levels], summed over the samples of ``trajectory``; only entries that go down mean something.

    A distance is that of the state an Euler step reaches from the teacher's. A departure is how much farther the state
    is from the line between the trajectory's ends than the teacher's.
    """
    fine = states.flatten(2)
    line = fine[-1] - fine[0]
    line = line / line.norm(dim=-1, keepdim=True)

    def off_line(points: Tensor) -> Tensor:
        away = points - fine[0]
        return (away - (away * line).sum(-1, keepdim=True) * line).norm(dim=-1)

    below = torch.tensor(levels, dtype=fine.dtype, device=fine.device).view(-1, 1, 1)
    errors = np.zeros((len(MEASURES), len(levels), len(levels)))
    for place, (state, slope) in enumerate(zip(fine[:-1], slopes.flatten(2), strict=True)):
        later = slice(place + 1, None)
        reached = state + (below[later] - levels[place]) * slope
        departed = off_line(reached) - off_line(fine[later])
        for measure, error in enumerate(((reached - fine[later]).norm(dim=-1), departed)):
            errors[measure, place, later] = error.sum(-1).cpu().numpy()
    return errors


def path(costs: np.ndarray, steps: int, factor: float) -> list[int]:
    """The places of ``steps + 1`` levels from first to last, with the least c_0 + factor·(c_1 + factor·(c_2 + …)).

    c_k is what the k-th step costs: ``costs`` [levels, levels] of a step from one level to another.
    """
    ahead = [costs[:, -1]]  # by the level to start from: the least cost of one step more each
    for _ in range(steps - 1):
        ahead.append((costs + factor * ahead[-1]).min(1))
    places = [0]
    for rest in reversed(ahead[:-1]):
        places.append(int((costs[places[-1]] + factor * rest).argmin()))
    return [*places, len(costs) - 1]
