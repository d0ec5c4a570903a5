"""The pilot: enough levels, where they are needed, and the shortest path among them."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler.calibration import pilot as piloting
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.fit import RIDGE, gram, image_errors, mean_error, solve
from edge_sampler.calibration.pilot import pilot, pilot_cost, shortest, two_step_errors
from edge_sampler.calibration.schedules import logarithmic
from edge_sampler.calibration.trace import correct
from edge_sampler.models.denoiser import Denoiser


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
    errors = np.random.default_rng(steps).random((size, size, size)) ** 3

    def cost(path: list[int]) -> float:
        return float(sum(errors[triple] for triple in zip([0, *path], path, path[1:], strict=False)))

    paths = [[0, *inner, size - 1] for inner in combinations(range(1, size - 1), steps - 1)]
    allowed = np.full_like(errors, np.inf)
    for path in ([0, *inner] for inner in combinations(range(1, size), 2)):
        allowed[tuple(path)] = errors[tuple(path)]
    for triple in combinations(range(size), 3):
        allowed[triple] = errors[triple]
    allowed[0, 0, 1:] = errors[0, 0, 1:]
    assert shortest(allowed, steps) == min(paths, key=cost)


@pytest.mark.parametrize("afs", [False, True])
def test_two_step_errors_are_what_fitted_steps_miss(afs: bool) -> None:
    """Of made-up states and answers, each triple by the fit's own least squares."""
    sigmas, generator = [9.0, 3.0, 0.5, 0.0], torch.Generator().manual_seed(0)
    states = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    answers = torch.randn(3, 5, 6, generator=generator, dtype=torch.float64)
    mean = answers[0].mean(0).expand_as(answers[0])
    errors = two_step_errors(gram([*states, *answers, mean]), sigmas, afs)
    told = [mean if afs else answers[0], *answers[1:]]
    for triple in np.ndindex(errors.shape):
        before, now, below = triple
        if not (before < now < below or before == now == 0 < below):
            assert errors[triple] == np.inf
            continue
        noise = [(x - answer) / sigma for x, answer, sigma in zip(states, told, sigmas, strict=False)]
        missing = states[below] - states[now] - (sigmas[below] - sigmas[now]) * noise[now]
        if now:
            directions = [told[now] - told[before], noise[now] - noise[before]]
            missing = correct(missing, directions, (-solve(gram([*directions, missing]), RIDGE)).tolist())
        assert errors[triple] == pytest.approx(missing.square().sum().item(), rel=1e-6)


def test_what_is_left_of_an_error_is_what_the_flow_leaves(mixture: Denoiser) -> None:
    """Of Gaussian data, x(σ) = x(0)·√(1 + σ²/s²): at every level, whatever the noise."""
    told = pilot(to_fit(Gaussian(0.5, mixture), 8, 4, 0), [5], NO_CACHE)
    expected = [1 / (1 + (sigma / 0.5) ** 2) ** 0.5 for sigma in told.levels]
    assert told.left[1:] == pytest.approx(expected[1:], rel=0.25)


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("power", [1.0, 1.5])
def test_an_error_that_turned_its_sign_weighs_by_its_size(power: float, afs: bool, mixture: Denoiser) -> None:
    """The cube of a negative one was a gain, and infinity times it no number."""
    told = pilot(to_fit(mixture, 8, 4, 0), [5], NO_CACHE)
    turned = replace(told, left=told.left * (-1.0) ** np.arange(len(told.left)))
    with np.errstate(all="raise"):
        assert turned.grid(5, afs, power) == told.grid(5, afs, power)


def test_where_nothing_is_left_of_an_error_there_is_a_path_all_the_same(mixture: Denoiser) -> None:
    told = pilot(to_fit(Gaussian(0.0, mixture), 8, 4, 0), [5], NO_CACHE)
    assert set(told.left[1:-1]) == {0.0}
    with np.errstate(all="raise"):
        grid = told.grid(5, afs=False)
    assert [grid[0], grid[-1], len(grid)] == [told.levels[0], 0.0, 6]
    assert grid == sorted(set(grid), reverse=True)


def test_there_are_as_many_levels_as_the_error_asks_for(mixture: Denoiser) -> None:
    """The fine solution's error is small beside a sampler's, for fewer evaluations than levels even in log σ take."""
    noises, spec = to_fit(mixture, 32, 4, 0), mixture.spec
    goal = solution(noises, [spec.sigma_max], 256, NO_CACHE)[0.0]
    before = noises.network.meter.evaluations
    levels = pilot(noises, [6], NO_CACHE).levels
    assert noises.network.meter.evaluations - before <= pilot_cost([6], 32)
    assert levels[0] == spec.sigma_max
    assert levels[-1] == 0.0
    assert list(levels) == sorted(set(levels), reverse=True)
    error = mean_error(solution(noises, levels, None, NO_CACHE)[0.0] - goal)
    assert error < 0.003  # a sampler's of five evaluations is 0.04
    even = logarithmic(len(levels) - 1, spec.sigma_min, spec.sigma_max)
    assert error < 0.7 * mean_error(solution(noises, even, None, NO_CACHE)[0.0] - goal)
    assert len(pilot(noises, [6], NO_CACHE, tolerated=1e-4).levels) > len(levels)
    assert len(pilot(noises, [80], NO_CACHE).levels) == 161  # twice as many as steps, and 0


def test_an_image_whose_path_parts_does_not_decide_how_many_levels_there_are(
    mixture: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may move a thousand times as far as the others when the solve gets finer."""
    noises, levels = to_fit(mixture, 8, 4, 0), []
    errors = image_errors
    for parting in (1, 5):
        factors = torch.tensor([1000.0] * parting + [1.0] * (8 - parting))
        monkeypatch.setattr(piloting, "image_errors", lambda difference, by=factors: by * errors(difference))
        monkeypatch.setattr(piloting, "density_of", lambda noises: np.ones(63))
        levels.append(len(pilot(noises, [5], NO_CACHE).levels) - 1)
    assert levels == [48, 64]
