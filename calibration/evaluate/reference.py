"""Fine-grained solves: what a step, or a whole sampler, should have computed."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.schedules import subdivide
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Denoise, Solver, base_step
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError

REFERENCE = find("ipndm")  # its evaluations are worth 1.5 to 2 of Heun's each
REFERENCE_STEPS = 128  # of it, to have converged
IN_MEMORY = 2**30  # bytes of states that are held there; more go to a temporary file


@dataclass(frozen=True)
class States(Mapping[float, Tensor]):
    """The state [n, …] at each noise level, float64 on the device of ``like``; held in float32, in memory or in a file.

    A level is read when it is asked for, so that never all of them are float64 at once.
    """

    levels: Sequence[float]
    held: np.ndarray  # float32 [levels, n, …]
    like: Tensor

    def __getitem__(self, sigma: float) -> Tensor:
        if sigma not in self.levels:
            raise KeyError(sigma)
        return torch.from_numpy(self.held[self.levels.index(sigma)]).to(self.like)

    def __iter__(self) -> Iterator[float]:
        return iter(self.levels)

    def __len__(self) -> int:
        return len(self.levels)

    def part(self, rows: slice | Sequence[int]) -> "States":
        """Of some of the samples."""
        return States(self.levels, self.held[:, rows], self.like)


def room(shape: tuple[int, ...], in_memory: int) -> np.ndarray:
    """float32, to be filled; beyond ``in_memory`` bytes in a file that goes with the process."""
    if np.prod(shape, dtype=np.int64) * 4 <= in_memory:
        return np.empty(shape, np.float32)
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return np.memmap(tempfile.TemporaryFile(dir=folder), np.float32, "w+", shape=shape)
    except OSError as error:
        size = np.prod(shape, dtype=np.int64) * 4 / 1e9
        raise UserError(
            f"cannot keep {size:.1f} GB of states in {folder}: {error.strerror}; let EDGE_SAMPLER_CACHE name another "
            "folder"
        ) from error


def substeps(levels: int, steps: int | None) -> int:
    """Into how many each interval is cut, for ``steps`` in all, or more, from so many ``levels`` down to 0.

    None: into none, since the levels are placed for a fine solve themselves (calibration/pilot.py).
    """
    return 1 if steps is None else max(2, -(-steps // levels))


def cost(levels: int, steps: int | None) -> int:
    """Network evaluations that ``trajectory`` spends on one image."""
    return levels * substeps(levels, steps)


def trajectory(network: Network, x: Tensor, levels: Iterable[float], steps: int | None) -> dict[float, Tensor]:
    """The same-noise solution at each noise level: {sigma: state [n, …]}, from x at the highest level down to 0.

    Solved by at least so many ``steps`` of ``REFERENCE``, equally many between neighbouring levels; None: one.
    """
    grid = sorted({*levels, 0.0}, reverse=True)
    count = substeps(len(grid) - 1, steps)
    states, made = [x], 0

    def record(base: Tensor, directions: Sequence[Tensor]) -> Tensor:
        nonlocal made
        made += 1
        if made % count == 0:
            states.append(base)
        return base

    REFERENCE.run(network, x, grid if count == 1 else subdivide(grid, count), record, history=0)
    return dict(zip(grid, states, strict=True))


def solution(
    noises: Noises, levels: Iterable[float], steps: int | None, cache: Cache, in_memory: int = IN_MEMORY
) -> States:
    """``trajectory`` of unit noises from the highest of ``levels``, in float32's precision, kept block by block."""
    grid = sorted({*levels, 0.0}, reverse=True)
    count = substeps(len(grid) - 1, steps)

    def solve(block: Noises) -> dict[str, np.ndarray]:
        states = trajectory(block.network, grid[0] * block.noise, grid, steps)
        return {"states": torch.stack([states[sigma] for sigma in grid]).float().cpu().numpy()}

    key = {"by": REFERENCE.name, "levels": grid, "substeps": count}
    held = room((len(grid), *noises.noise.shape), in_memory)
    for rows, block in noises.blocks():
        kept = cache.recall({"solution": block.key, **key}, partial(solve, block), block.network.meter)
        held[:, rows] = kept["states"]
    return States(grid, held, noises.noise[:0])


def local_target(
    solver: Solver, network: Denoise, x: Tensor, sigma: float, sigma_next: float, fine_steps: int
) -> Tensor:
    """Where the solver itself, run in ``fine_steps`` of [σ', σ], takes x: the target of arXiv 2304.11328."""
    return solver.run(network, x, subdivide([sigma, sigma_next], fine_steps), base_step, history=0)


def local_cost(solver: Solver, steps: int, fine_steps: int) -> int:
    """Network evaluations that ``local_target`` spends on one sample over so many steps, the last of them to 0."""
    asked = list[float]()

    def count(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return x

    for sigma in range(steps, 0, -1):
        local_target(solver, count, torch.zeros(1), float(sigma), sigma - 1.0, fine_steps)
    return len(asked)
