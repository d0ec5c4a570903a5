"""Properties that every solver has, over ALL_SOLVERS, on a problem whose denoiser is known in closed form."""

import numpy as np
import pytest

from edge_sampler.calibration.schedules import SCHEDULES, bent, edm, straight, subdivide
from edge_sampler.calibration.solvers import ALL_SOLVERS, find
from edge_sampler.calibration.solvers.base import Scheme, Solver, base_step
from edge_sampler.calibration.trace import corrected_by, trace
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample

NFES = (1, 2, 3, 4, 5, 10, 25)
CENTRES = np.random.default_rng(0).normal(size=(5, 48)) * 0.5
WIDTH = 0.2
NOISE = np.random.default_rng(1).normal(size=(16, 48))

solvers = pytest.mark.parametrize("solver", ALL_SOLVERS, ids=lambda solver: solver.name)


def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
    """The exact denoiser of a mixture of five Gaussians in 48 dimensions."""
    variance = sigma**2 + WIDTH**2
    logits = -np.square(x[:, None] - CENTRES).sum(-1) / (2 * variance)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    mean = weights / weights.sum(1, keepdims=True) @ CENTRES
    return mean + WIDTH**2 / variance * (x - mean)


def grid(solver: Solver, nfe: int) -> list[float]:
    return edm(solver.steps(nfe), 0.002, 80.0)


def zeros(solver: Solver, nfe: int, history: int) -> list[list[float]]:
    """A γ of zeros for every direction that the solver hands out."""
    counts: list[int] = []

    def count(base: np.ndarray, directions: list[np.ndarray]) -> np.ndarray:
        counts.append(len(directions))
        return base

    solver.run(denoise, NOISE, grid(solver, nfe), count, history, nfe)
    return [[0.0] * n for n in counts]


@solvers
@pytest.mark.parametrize("nfe", NFES)
def test_the_plan_is_the_solver(solver: Solver, nfe: int) -> None:
    sigmas = grid(solver, nfe)
    plan = trace(Scheme(solver, sigmas, nfe))
    images = solver.run(denoise, NOISE * sigmas[0], sigmas, base_step, 0, nfe)
    np.testing.assert_allclose(sample(denoise, NOISE, plan), images, rtol=1e-9, atol=1e-9)


@solvers
@pytest.mark.parametrize("nfe", NFES)
def test_exactly_the_evaluations_asked_for(solver: Solver, nfe: int) -> None:
    calls = []

    def counting(x: np.ndarray, sigma: float) -> np.ndarray:
        calls.append(sigma)
        return denoise(x, sigma)

    solver.run(counting, NOISE, grid(solver, nfe), base_step, 0, nfe)
    assert len(calls) == nfe == trace(Scheme(solver, grid(solver, nfe), nfe)).nfe


@solvers
@pytest.mark.parametrize("nfe", [1, 2, 7, 10])
def test_no_correction_is_the_base_solver(solver: Solver, nfe: int) -> None:
    sigmas = grid(solver, nfe)
    corrected = trace(Scheme(solver, sigmas, nfe, 2), zeros(solver, nfe, 2))
    assert corrected == trace(Scheme(solver, sigmas, nfe))


@pytest.mark.parametrize(
    "solver", [solver for solver in ALL_SOLVERS if solver.history is not None], ids=lambda solver: solver.name
)
def test_a_correction_changes_images_as_the_plan_says(solver: Solver) -> None:
    nfe, sigmas = 7, grid(solver, 7)
    gammas = [[0.1 / (j + 1) for j in range(len(step))] for step in zeros(solver, nfe, 2)]
    plan = trace(Scheme(solver, sigmas, nfe, 2), gammas)
    images = solver.run(denoise, NOISE * sigmas[0], sigmas, corrected_by(gammas), 2, nfe)
    np.testing.assert_allclose(sample(denoise, NOISE, plan), images, rtol=1e-8, atol=1e-8)
    assert np.abs(images - sample(denoise, NOISE, trace(Scheme(solver, sigmas, nfe)))).max() > 1e-3


@pytest.mark.parametrize(
    "solver", [solver for solver in ALL_SOLVERS if not solver.clip], ids=lambda solver: solver.name
)  # where a clip begins and ends, a solution is not smooth
def test_measured_order_is_the_stated_order(solver: Solver) -> None:
    """From how the images move as steps double, down to σ = 0.002; a higher order than stated is no fault."""

    def solve(steps: int) -> np.ndarray:
        images: np.ndarray = solver.run(denoise, NOISE * 80.0, edm(steps, 0.002, 80.0)[:-1], base_step, 0)
        return images

    coarse, middle, fine = solve(400), solve(800), solve(1600)
    first, second = (np.square(change).mean() ** 0.5 for change in (coarse - middle, middle - fine))
    assert np.log2(first / second) > solver.order - 0.15


@solvers
def test_a_constant_denoiser_is_reached_exactly(solver: Solver) -> None:
    """With D constant the ODE is linear, and every solver is exact whatever its steps."""
    target = np.full_like(NOISE, 0.7)
    for nfe in (1, 2, 5):
        images = sample(lambda x, sigma: target, NOISE, trace(Scheme(solver, grid(solver, nfe), nfe)))
        np.testing.assert_allclose(images, target, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_grids_fall_from_the_highest_level_to_zero(name: str) -> None:
    for steps in (1, 2, 3, 40):
        sigmas = SCHEDULES[name](steps, 0.002, 80.0)
        assert len(sigmas) == steps + 1
        assert sigmas == sorted(sigmas, reverse=True)
        assert len(set(sigmas)) == len(sigmas)
        assert sigmas[0] == pytest.approx(80.0, rel=1e-9)
        assert sigmas[-1] == 0
        if steps > 1 and name != "flow":  # whose last step goes down from t = 1/steps
            assert sigmas[-2] == pytest.approx(0.002, rel=1e-9)


def test_refining_keeps_the_levels() -> None:
    sigmas = edm(4, 0.002, 80.0)
    fine = subdivide(sigmas, 5)
    assert fine[::5] == sigmas
    assert fine == sorted(fine, reverse=True)
    with pytest.raises(UserError, match="at least 2"):
        subdivide(sigmas, 1)


def test_names_and_aliases() -> None:
    assert find("euler") is find("ddim")
    with pytest.raises(UserError, match=r"unknown solver 'ipmdn'; did you mean .*ipndm"):
        find("ipmdn")


def test_a_flows_grid_is_uniform_in_its_time() -> None:
    """arXiv 2209.03003's Euler steps, from whatever stands for t = 1."""
    sigmas = np.array(SCHEDULES["flow"](8, 0.002, 1e7))
    np.testing.assert_allclose(sigmas / (1 + sigmas), np.linspace(1, 0, 9), atol=1e-6)


@pytest.mark.parametrize("sigma", [0.0, 0.002, 79.0, 80.0, 81.0, 1e4, 1e7])
def test_the_scale_that_intervals_are_cut_on_can_be_read_back(sigma: float) -> None:
    assert straight(bent(sigma)) == pytest.approx(sigma, rel=1e-6)
    if sigma:
        assert bent(sigma * 0.99) < bent(sigma) < bent(1e8) < 1.2 * bent(80.0)
