"""Chosen grids: a search lowers what a sampler errs, and a model's own levels serve it better than EDM's."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.chosen_levels import USUAL, Effort, choose, scout_of, search
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_fit
from edge_sampler.calibration.evaluate.reference import States, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.pilot import COUNTS
from edge_sampler.calibration.schedules import edm, logarithmic
from edge_sampler.calibration.scout import SCOUT, Ground, attempt
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import ALL_SOLVERS
from edge_sampler.calibration.solvers.base import Scheme, Solver, base_step
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import silent
from tests.calibration.toys import calls_of


@pytest.mark.parametrize("afs", [False, True])
def test_grids_have_every_length_within_the_models_range(mixture: Denoiser, afs: bool) -> None:
    numbers, noises = (1, 2, 5, 8), to_fit(mixture, 4, 4, 0)
    choice = choose(noises, numbers, NO_CACHE)
    grid = choice.grid(mean_image(noises, NO_CACHE) if afs else None)
    assert len(choice.fine) - 1 in COUNTS  # the last is 0
    for steps in numbers:
        levels = grid(steps)
        assert len(levels) == steps + 1
        assert levels == sorted(set(levels), reverse=True)
        assert levels[0] == mixture.spec.sigma_max
        assert levels[-1] == 0.0
        assert set(levels) <= set(choice.fine)


def prepared(model: Denoiser) -> tuple[Noises, States]:
    """Noises to search on, and their solution at 24 levels."""
    noises = to_fit(model, 16, 8, 0)
    fine = solution(noises, logarithmic(24, model.spec.sigma_min, model.spec.sigma_max), 48, NO_CACHE)
    return noises.part(slice(noises.fitting)), fine


def error(sigmas: Sequence[float], noises: Noises, fine: States) -> float:
    return attempt(Scheme(SCOUT, sigmas, len(sigmas) - 1, 1), Ground.of(noises, fine)).error


def test_search_lowers_what_the_scouts_images_err(mixture: Denoiser, tmp_path: Path) -> None:
    """From levels that are far from good, by as many evaluations as it says or fewer; what it found is kept."""
    noises, fine = prepared(mixture)
    levels = sorted(fine, reverse=True)
    starts = [[*levels[:5], 0.0], [levels[place] for place in (0, 1, 4, 6, 8, 24)]]
    meter, cache = noises.network.meter, Cache(tmp_path)
    before, calls = meter.evaluations, calls_of(mixture)
    found = search(starts, noises, fine, cache)
    assert 0 < meter.evaluations - before <= USUAL.cost(5, 16)
    assert found[0] == levels[0]
    assert found[-1] == 0.0
    assert error(found, noises, fine) < 0.5 * min(error(start, noises, fine) for start in starts)
    made = len(calls)
    assert search(starts, noises, fine, cache) == found
    assert len(calls) == made


def test_a_search_that_runs_out_of_evaluations_keeps_what_it_has(mixture: Denoiser, tmp_path: Path) -> None:
    """The more it may spend, the better its levels; it never spends more. What little found is not kept for much."""
    noises, fine = prepared(mixture)
    levels, errors = sorted(fine, reverse=True), []
    start = [levels[place] for place in (0, 1, 4, 6, 8, 24)]
    for allowed, steps in ((8, 11), (8, 55), (400, 11)):
        effort, before = Effort(allowed=allowed, least=steps), noises.network.meter.evaluations
        found = search([start], noises, fine, Cache(tmp_path), effort=effort)
        errors.append(error(found, noises, fine))
        spent = noises.network.meter.evaluations - before - 5 * 16  # without that of ``error``
        assert spent <= effort.cost(5, 16) <= steps * allowed
        assert (found == start) == (allowed * steps == 88)  # enough to try the start
    assert errors[0] > errors[1] > errors[2]


def test_a_move_that_does_not_pay_on_few_noises_is_not_tried_on_more(mixture: Denoiser) -> None:
    """From a grid that no move betters; most cost the evaluations of few noises alone."""
    (noises, fine), effort = prepared(mixture), Effort(tried=(4, 16), shifts=(1,))
    levels = sorted(fine, reverse=True)
    settled = [levels[place] for place in (0, 1, 4, 6, 8, 24)]
    while settled != (better := search([settled], noises, fine, NO_CACHE, effort=effort)):
        settled = better
    start = noises.network.meter.evaluations
    assert search([settled], noises, fine, NO_CACHE, effort=effort) == settled
    moves = noises.network.meter.evaluations - start - 5 * 20
    every = 2 * (4 + 3 + 2 + 1)  # evaluations of one noise, if all moves are tried on it
    assert every * 4 <= moves < 0.75 * every * (4 + 16)


def test_the_same_noises_fit_in_whatever_order_they_come(mixture: Denoiser) -> None:
    """As when two processes share them."""
    noises, fine = prepared(mixture)
    sigmas = [sorted(fine, reverse=True)[place] for place in (0, 8, 12, 15, 24)]
    parts = [error(sigmas, noises.some(order), fine.part(order)) for order in (range(16), [*range(1, 16), 0])]
    assert parts[0] == pytest.approx(parts[1], rel=1e-9)
    ground = Ground.of(noises, fine)
    assert ground.noises.fitting == 8
    assert all(seed % 2 == 0 for seed in ground.noises.seeds[:8])
    assert torch.equal(ground.fine[0.0][8:], fine[0.0][1:16:2])


def test_chosen_levels_beat_edms(mixture: Denoiser, tmp_path: Path) -> None:
    """For a fixed solver and a fitted one, on noises that chose nothing."""
    cache = Cache(tmp_path)
    for solver in ("ipndm", "iia-ipndm"):
        settings = [Settings(6, solver, schedule, "global", fit_batch=32, heldout=16) for schedule in ("edm", "chosen")]
        plans = [calibrate(mixture, one, silent, cache) for one in settings]
        edm, chosen = (error_against_converged(mixture, plan, 32, silent, cache) for plan in plans)
        assert chosen < 0.7 * edm, solver


@pytest.mark.parametrize("solver", ALL_SOLVERS, ids=lambda solver: solver.name)
def test_a_scout_evaluates_once_a_step(solver: Solver) -> None:
    """A search counts by that, and reuses the answers above the level that moves."""
    asked: list[float] = []

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        asked.append(sigma)
        return x / 2

    scout = scout_of(solver)
    scout.run(denoise, torch.ones(1), edm(4, 0.1, 80.0), base_step, 0)
    assert len(asked) == 4
    assert scout in (solver, SCOUT)
