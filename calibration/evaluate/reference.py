"""Fine-grained solves: what a step, or a whole sampler, should have computed."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.schedules import subdivide
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Solver, base_step

REFERENCE = find("ipndm")  # its evaluations are worth 1.5 to 2 of Heun's each
REFERENCE_STEPS = 128  # of it, to have converged


def substeps(levels: int, steps: int) -> int:
    """Into how many each interval is cut, for ``steps`` in all, or more, from so many ``levels`` down to 0."""
    return max(2, -(-steps // levels))


def cost(levels: int, steps: int) -> int:
    """Network evaluations that ``trajectory`` spends on one image."""
    return levels * substeps(levels, steps)


def trajectory(network: Network, x: Tensor, levels: Iterable[float], steps: int) -> dict[float, Tensor]:
    """The same-noise solution at each noise level: {sigma: state [n, …]}, from x at the highest level down to 0.

    Solved by at least so many ``steps`` of ``REFERENCE``, equally many between neighbouring levels.
    """
    grid = sorted({*levels, 0.0}, reverse=True)
    count = substeps(len(grid) - 1, steps)
    states = [x]

    def record(base: Tensor, directions: Sequence[Tensor]) -> Tensor:
        states.append(base)
        return base

    REFERENCE.run(network, x, subdivide(grid, count), record, history=0)
    return dict(zip(grid, states[::count], strict=True))


def solution(noises: Noises, levels: Iterable[float], steps: int, cache: Cache) -> dict[float, Tensor]:
    """``trajectory`` of unit noises from the highest of ``levels``, in float32's precision, kept block by block."""
    grid = sorted({*levels, 0.0}, reverse=True)
    count = substeps(len(grid) - 1, steps)

    def solve(block: Noises) -> dict[str, np.ndarray]:
        states = trajectory(block.network, grid[0] * block.noise, grid, steps)
        return {"states": torch.stack([states[sigma] for sigma in grid]).float().cpu().numpy()}

    key = {"by": REFERENCE.name, "levels": grid, "substeps": count}
    solved = [
        cache.recall({"solution": block.key, **key}, partial(solve, block))["states"] for _, block in noises.blocks()
    ]
    states = torch.from_numpy(np.concatenate(solved, axis=1)).to(noises.noise)
    return dict(zip(grid, states, strict=True))


def local_target(
    solver: Solver, network: Network, x: Tensor, sigma: float, sigma_next: float, fine_steps: int
) -> Tensor:
    """Where the solver itself, run in ``fine_steps`` of [σ', σ], takes x: the target of arXiv 2304.11328."""
    return solver.run(network, x, subdivide([sigma, sigma_next], fine_steps), base_step, history=0)
