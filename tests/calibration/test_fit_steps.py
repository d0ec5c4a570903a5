"""The hook that fits each step while the solver runs, on a denoiser that costs nothing; and the errors it goes by."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler.calibration.fit import fit, image_errors, mean_error, rms, solve
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.trace import correct

SIGMAS = [8.0, 3.0, 1.0, 0.25, 0.0]
FITTING = 12
START = 8 * torch.randn(20, 1, 3, 3, generator=torch.Generator().manual_seed(0)).double()


def denoise(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x) * 3 / (1 + sigma)


def passed(scheme: Scheme, gammas: list[tuple[float, ...]]) -> list[Tensor]:
    """The states behind each step, corrected by ``gammas``."""
    states: list[Tensor] = []

    def step(base: Tensor, directions: list[Tensor]) -> Tensor:
        states.append(correct(base, directions, gammas[len(states)]))
        return states[-1]

    scheme.run(denoise, START, step)  # type: ignore[arg-type]
    return states


def test_errors_are_of_all_values_and_of_images() -> None:
    difference = torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert rms(difference) == 2.5
    assert image_errors(difference).tolist() == pytest.approx([math.sqrt(12.5), 0])
    assert mean_error(difference) == pytest.approx(math.sqrt(12.5) / 2)


def test_the_ridge_is_relative_to_a_directions_length() -> None:
    for length in (1e-3, 1.0, 1e3):
        products = np.array([[length**2, 6.0], [6.0, 100.0]])
        for ridge in (0.0, 0.5):
            assert solve(products, ridge) == pytest.approx([6 / (length**2 * (1 + ridge))])


def test_directions_that_vanish_or_repeat_share_the_least_weights() -> None:
    one = np.array([[4.0, 4.0, 0.0, 8.0], [4.0, 4.0, 0.0, 8.0], [0.0] * 4, [8.0, 8.0, 0.0, 20.0]])
    np.testing.assert_allclose(solve(one, 0.0), [1.0, 1.0, 0.0], atol=1e-12)
    assert solve(np.array([[3.0]]), 0.0).shape == (0,)


def test_the_steps_of_a_known_sampler_are_found() -> None:
    """By the images that fit alone; the errors are of those held out."""
    scheme = Scheme(find("iia-ddim"), SIGMAS, 4, 1)
    gammas = [(), (0.2, -0.3), (-0.1, 0.4), (0.25, 0.125)]
    states, bases = passed(scheme, gammas), list[Tensor]()
    bend = torch.zeros_like(START)
    bend[FITTING:] = 0.01 * START[FITTING:]

    def target(index: int, state: Tensor) -> Tensor:
        assert torch.equal(state, START) if index == 0 else state.allclose(states[index - 1])
        return states[index] + bend

    steps, images = fit(scheme, denoise, START, target, FITTING, 0.0)
    torch.testing.assert_close(images, states[-1])
    for step, gamma in zip(steps, gammas, strict=True):
        if gamma != gammas[1]:  # where both directions are one
            np.testing.assert_allclose(step.gamma, gamma, atol=1e-9)
        assert step.error_after == pytest.approx(rms(bend[FITTING:]))
    assert steps[0].error_before == pytest.approx(steps[0].error_after)

    def record(base: Tensor, directions: list[Tensor]) -> Tensor:
        bases.append(base)
        return states[len(bases) - 1]

    scheme.run(denoise, START, record)  # type: ignore[arg-type]
    for step, base, state in zip(steps, bases, states, strict=True):
        assert step.error_before == pytest.approx(rms((state + bend - base)[FITTING:]))


@pytest.mark.parametrize("paper", [False, True])
def test_a_step_that_errs_more_is_dropped_but_in_the_paper(paper: bool) -> None:
    """Which fits neither the first step nor the last."""
    scheme = Scheme(find("iia-ddim-guided"), SIGMAS, 4, 0)
    states = passed(scheme, [(0.0,)] * 4)
    sign = torch.where(torch.arange(20) < FITTING, 1.0, -1.0).reshape(-1, 1, 1, 1)

    def target(index: int, state: Tensor) -> Tensor:  # those held out want the opposite
        return states[index] + 0.1 * sign * states[index]

    steps, _ = fit(scheme, denoise, START, target, FITTING, 0.0, paper)
    kept = [any(step.gamma) for step in steps]
    assert kept == ([False, True, True, False] if paper else [False] * 4)
    assert all(len(step.gamma) == 1 for step in steps)
    assert all(step.error_after == step.error_before for step in steps if not any(step.gamma))
    if paper:
        assert steps[1].error_after > steps[1].error_before


def test_the_ridge_reaches_every_step() -> None:
    scheme = Scheme(find("iia-ddim"), SIGMAS, 4, 1)
    states = passed(scheme, [(), (0.2, -0.3), (-0.1, 0.4), (0.25, 0.125)])
    free, held = (fit(scheme, denoise, START, lambda i, _: states[i], FITTING, ridge)[0] for ridge in (0.0, 10.0))
    assert np.abs(held[1].gamma).sum() < 0.5 * np.abs(free[1].gamma).sum()
