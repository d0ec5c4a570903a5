"""Chosen grids: the shortest path is the shortest, and a model's own levels serve it better than EDM's."""

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.cache import NO_CACHE, Cache
from calibration.calibrate import Settings, calibrate, error_against_converged
from calibration.grid import LEVELS, choose, shortest, step_errors
from calibration.noises import to_fit
from models.precond import Denoiser
from models.progress import silent


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_shortest_is_the_best_of_all_paths(steps: int) -> None:
    size = 7
    errors = np.triu(np.random.default_rng(steps).random((size, size)) ** 3, 1)
    errors[np.tril_indices(size)] = np.inf

    def cost(path: list[int]) -> float:
        return float(sum(errors[pair] for pair in pairwise(path)))

    paths = [[0, *inner, size - 1] for inner in combinations(range(1, size - 1), steps - 1)]
    assert shortest(errors, steps) == min(paths, key=cost)


def test_step_errors_are_those_of_euler_steps(digits: Denoiser) -> None:
    """On a made-up trajectory, entry by entry; noises that fill no whole block are all there, and no others."""
    noises = to_fit(digits, 40, 8, 0)
    sigmas = [80.0, 3.0, 0.4, 0.0]
    generator = torch.Generator().manual_seed(0)
    fine = {sigma: torch.randn(noises.noise.shape, generator=generator).double() for sigma in sigmas}
    errors = step_errors(noises.part(slice(noises.fitting)), fine, NO_CACHE)
    for i, sigma in enumerate(sigmas):
        for j, below in enumerate(sigmas):
            if below >= sigma:
                assert errors[i, j] == np.inf
                continue
            x = fine[sigma][:40]
            moved = x + (below - sigma) / sigma * (x - noises.part(slice(40)).network(x, sigma))
            each = (moved - fine[below][:40]).square().flatten(1).mean(1).sqrt()
            assert errors[i, j] == pytest.approx(each.sum().item(), rel=1e-4)


def test_grids_have_every_length_within_the_models_range(digits: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.grid.LEVELS", 12)
    grid, fine = choose(to_fit(digits, 4, 4, 0), 8, 24, NO_CACHE, silent)
    assert len(fine) == 2 * 8 + 1 < LEVELS  # twice as many as steps, and 0
    for steps in range(1, 9):
        levels = grid(steps)
        assert len(levels) == steps + 1
        assert levels == sorted(set(levels), reverse=True)
        assert levels[0] == digits.spec.sigma_max
        assert levels[-1] == 0.0
        assert set(levels) <= set(fine)


@pytest.mark.usefixtures("coarse_reference")
def test_chosen_levels_beat_edms(digits: Denoiser, tmp_path: Path) -> None:
    """For a fixed solver and a fitted one, on noises that chose nothing."""
    cache = Cache(tmp_path)
    for solver in ("ipndm", "iia-ipndm"):
        settings = [Settings(6, solver, schedule, "global", batch=32, heldout=16) for schedule in ("edm", "chosen")]
        plans = [calibrate(digits, one, silent, cache) for one in settings]
        edm, chosen = (error_against_converged(digits, plan, 32, silent, cache) for plan in plans)
        assert chosen < 0.7 * edm, solver
