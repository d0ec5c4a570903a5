"""Chosen grids: the shortest path is the shortest, and a model's own levels serve it better than EDM's."""

from itertools import combinations, pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.candidates import best_candidate, make_candidate, scheme_of
from edge_sampler.calibration.chosen_levels import (
    LEVELS,
    choose,
    remainders,
    search,
    search_cost,
    shortest,
    step_errors,
)
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.reference import States, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import RIDGE, fit, mean_error
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.schedules import logarithmic
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import silent


class Gaussian(Denoiser):
    """The exact denoiser of independent pixels of this deviation."""

    def __init__(self, deviation: float, like: Denoiser) -> None:
        super().__init__()
        self.spec, self.deviation = like.spec, deviation

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        return x * self.deviation**2 / (self.deviation**2 + sigma**2)


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_shortest_is_the_best_of_all_paths(steps: int) -> None:
    size = 7
    errors = np.triu(np.random.default_rng(steps).random((size, size)) ** 3, 1)
    errors[np.tril_indices(size)] = np.inf

    def cost(path: list[int]) -> float:
        return float(sum(errors[pair] for pair in pairwise(path)))

    paths = [[0, *inner, size - 1] for inner in combinations(range(1, size - 1), steps - 1)]
    assert shortest(errors, steps) == min(paths, key=cost)


def test_step_errors_are_those_of_euler_steps(mixture: Denoiser) -> None:
    """On a made-up trajectory, entry by entry; noises that fill no whole block are all there, and no others."""
    noises = to_fit(mixture, 40, 8, 0)
    sigmas = [80.0, 3.0, 0.4, 0.0]
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(sigmas), *noises.noise.shape, generator=generator)
    fine = States(sigmas, states.numpy(), noises.noise)
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


def test_what_is_left_of_an_error_is_what_the_flow_leaves(mixture: Denoiser) -> None:
    """Of Gaussian data, x(σ) = x(0)·√(1 + σ²/s²): at every level, whatever the noise."""
    noises = to_fit(Gaussian(0.5, mixture), 8, 4, 0)
    sigmas = logarithmic(64, mixture.spec.sigma_min, mixture.spec.sigma_max)
    growth = {sigma: (1 + (sigma / 0.5) ** 2) ** 0.5 for sigma in sigmas}
    states = torch.stack([growth[sigma] * noises.noise for sigma in sigmas])
    fine = States(sigmas, states.float().numpy(), noises.noise)
    left = remainders(noises.part(slice(noises.fitting)), fine, NO_CACHE)
    assert left[1:] == pytest.approx([1 / growth[sigma] for sigma in sigmas[1:]], rel=0.25)


def test_grids_have_every_length_within_the_models_range(mixture: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sampler.calibration.chosen_levels.LEVELS", 12)
    numbers = (1, 2, 5, 8)
    grids, fine = choose(to_fit(mixture, 4, 4, 0), numbers, 24, NO_CACHE, silent)
    assert len(fine) == 2 * 8 + 1 < LEVELS  # twice as many as steps, and 0
    for grid, steps in product(grids, numbers):
        levels = grid(steps)
        assert len(levels) == steps + 1
        assert levels == sorted(set(levels), reverse=True)
        assert levels[0] == mixture.spec.sigma_max
        assert levels[-1] == 0.0
        assert set(levels) <= set(fine)


def test_a_solver_takes_the_grid_that_serves_it_best(mixture: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sampler.calibration.chosen_levels.LEVELS", 32)
    settings = Settings(5, "iia-ipndm", "chosen", "global", batch=8, heldout=8)
    noises = to_fit(mixture, settings.batch, settings.heldout, 0)
    (chosen, *_), fine = choose(noises, [settings.nfe], 24, NO_CACHE, silent)
    levels = sorted(fine, reverse=True)
    grids = [chosen, lambda steps: [levels[round(place)] for place in np.linspace(0, len(levels) - 1, steps + 1)]]
    schemes = [scheme_of(find("ipndm"), grid, settings) for grid in grids]
    good, even = (make_candidate(scheme, noises, fine, "global", settings).error for scheme in schemes)
    assert good < even
    for order in (grids, grids[::-1]):
        assert best_candidate(find("ipndm"), order, noises, fine, "global", settings).error == good


def test_search_lowers_what_the_scouts_images_err(mixture: Denoiser, tmp_path: Path) -> None:
    """From levels that are far from good, by as many evaluations as it says or fewer; what it found is kept."""
    noises = to_fit(mixture, 16, 8, 0)
    fine = solution(noises, logarithmic(24, mixture.spec.sigma_min, mixture.spec.sigma_max), 48, NO_CACHE)
    levels, fitting = sorted(fine, reverse=True), noises.part(slice(noises.fitting))
    starts = [[*levels[:5], 0.0], [levels[place] for place in (0, 1, 4, 6, 8, 24)]]

    def error(sigmas: list[float]) -> float:
        scheme = Scheme(find("iia-ddim"), sigmas, 5, 1)
        goals = [fine[sigma][:16] for sigma in sigmas[1:]]
        x = sigmas[0] * fitting.noise
        _, images = fit(scheme, fitting.network, x, lambda index, state: goals[index], 8, RIDGE)
        return mean_error(images - goals[-1])

    meter, cache = noises.network.meter, Cache(tmp_path)
    before = meter.evaluations
    found = search(starts, fitting, fine, cache)
    spent = meter.evaluations - before
    assert 0 < spent <= search_cost(5) * len(fitting)
    assert found[0] == levels[0]
    assert found[-1] == 0.0
    assert error(found) < 0.5 * min(map(error, starts))
    before = meter.evaluations
    assert search(starts, fitting, fine, cache) == found
    assert meter.evaluations == before


def test_chosen_levels_beat_edms(mixture: Denoiser, tmp_path: Path) -> None:
    """For a fixed solver and a fitted one, on noises that chose nothing."""
    cache = Cache(tmp_path)
    for solver in ("ipndm", "iia-ipndm"):
        settings = [Settings(6, solver, schedule, "global", batch=32, heldout=16) for schedule in ("edm", "chosen")]
        plans = [calibrate(mixture, one, silent, cache) for one in settings]
        edm, chosen = (error_against_converged(mixture, plan, 32, silent, cache) for plan in plans)
        assert chosen < 0.7 * edm, solver
