"""Joint refinement of networks that answer at once: what it costs, holds in memory, counts and clips."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler.calibration import refinement as refining
from edge_sampler.calibration.derivatives import derivative_cost, derivatives, directions
from edge_sampler.calibration.evaluate.distributed import BLOCK
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.fit import image_errors
from edge_sampler.calibration.refinement import (
    iteration_cost,
    noise_bytes,
    noises_at_once,
    normal_equations,
    number_of_turns,
    parameters,
    pieces,
    refine,
    refine_over,
    refinement_bytes,
    step,
    turns_of,
    with_parameters,
)
from edge_sampler.calibration.views import PIXELS, View
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.calibration.toys import plan_of, toy

LIMITS = (0.01, 10.0)


class Louder(Wrapped):
    def __init__(self, model: Denoiser, gain: float) -> None:
        super().__init__(model, architecture=f"{gain}")
        self.gain = gain

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        return self.gain * self.model(x, sigma, **conditions)


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return toy()


@pytest.fixture(scope="module")
def noises(model: Denoiser) -> Noises:
    return to_fit(model, 6, 4, 0)


@pytest.fixture(scope="module")
def goal(noises: Noises) -> Tensor:
    return solution(noises, [10.0], 16, NO_CACHE)[0.0]


@pytest.fixture(scope="module")
def louder(model: Denoiser) -> list[Denoiser]:
    return [Louder(model, gain) for gain in (0.9, 1.1, 0.8)]


def errors_of(plan: Plan, noises: Noises, goal: Tensor) -> np.ndarray:
    """Of the noises held out."""
    images = sample(noises.heldout.network.in_turn(), noises.heldout.noise, plan)
    return image_errors(images - goal[noises.fitting :]).numpy()


@pytest.mark.parametrize("differ", [False, True])
def test_an_iteration_costs_what_is_said_and_errors_are_the_held_out_ones(
    differ: bool, model: Denoiser, noises: Noises, goal: Tensor, louder: list[Denoiser]
) -> None:
    """All errors are counted in the bar; the first, before any iteration, comes before it."""
    bars, spent, plan = list[tuple[str, int]](), list[int](), plan_of(model)

    @contextmanager
    def bar(told: str, cost: int) -> Iterator[Callable[[int], None]]:
        bars.append((told, cost))
        spent.append(0)

        def advance(count: int) -> None:
            spent[-1] += count

        yield advance

    over = noises.over(louder) if differ else noises
    if differ:
        found = refine_over(louder, plan, noises, goal, 2, NO_CACHE, bar)
    else:
        found = refine(plan, noises, goal, 2, NO_CACHE, bar)
    assert [told for told, _ in bars] == ["refinement 1 of up to 2", "refinement 2 of up to 2"][: len(bars)]
    assert [cost for _, cost in bars] == spent
    assert len(found.errors) == len(bars) + 1
    before, after = (errors_of(one, over, goal) for one in (plan, found.plan))
    mean = (lambda errors: np.exp(np.log(errors).mean())) if differ else np.mean
    assert found.errors[0] == pytest.approx(mean(before))
    assert min(found.errors) == pytest.approx(mean(after))
    assert mean(after) < 0.8 * mean(before)


def test_costs_are_those_of_the_parts() -> None:
    """At entries of 1 and 2: an evaluation, 1 + 1 differences; an evaluation, 1 + 2 + 1 + 1 differences."""
    alike = iteration_cost([1, 2], 1, 0, 1)
    assert alike == (3 + 6) + 2 * 6
    assert iteration_cost([1, 2], 1, 0, 1, differ=True) == alike + 2
    assert iteration_cost([1, 2], 5, 3, 4) == 5 * alike + 4 * 2 * 3
    numbers = [2, 6, 11, 17, 24]  # with an analytical first step: entries so far, and noise levels before
    asked = [2, 6, 10, 13, 15]  # ceil(3√numbers), and no more than numbers
    assert [directions(count) for count in numbers] == asked
    assert derivative_cost([2, 3, 4, 5, 6]) == sum(2 + count for count in asked)


def test_a_turn_is_a_quarter_of_the_noises_but_16_to_32() -> None:
    assert {noises: number_of_turns(noises) for noises in (1, 16, 40, 64, 112, 128, 256, 300)} == {
        1: 1, 16: 1, 40: 2, 64: 4, 112: 4, 128: 4, 256: 8, 300: 9,
    }  # fmt: skip


def test_a_turn_moves_by_what_all_noises_told_last(
    model: Denoiser, noises: Noises, goal: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each turn has its share of the noises; equations of earlier turns are taken to where the plan is now."""
    steps = list[tuple[Plan, np.ndarray, np.ndarray]]()

    def recorded(plan: Plan, matrix: np.ndarray, slope: np.ndarray, *others: Any) -> Plan:
        steps.append((plan, matrix, slope))
        return step(plan, matrix, slope, *others)

    monkeypatch.setattr(refining, "step", recorded)
    refine(plan_of(model), noises, goal, 2, NO_CACHE, at_a_turn=(2, 2))
    turns, each = turns_of(noises, goal, (2, 2)), len(steps) // 6
    assert [list(part.seeds) for part, _ in turns] == [[0, 3], [1, 4], [2, 5]]
    plans = [plan for plan, _, _ in steps[::each]]
    assert len({plan.sha256 for plan in plans}) == 6
    for now in (0, 2, 4):  # of the second iteration the last but one
        told = {turn % 3: turn for turn in range(now + 1)}
        matrix, slope = np.zeros_like(steps[0][1]), np.zeros_like(steps[0][2])
        for turn, when in told.items():
            own = normal_equations(*turns[turn], plans[when], PIXELS, NO_CACHE)
            matrix += own[0]
            slope += own[1] + own[0] @ (parameters(plans[now]) - parameters(plans[when]))
        np.testing.assert_allclose(steps[now * each][1], matrix, rtol=1e-9)
        np.testing.assert_allclose(steps[now * each][2], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("turns", "patience"), [(6, 4), (20, 10)])
def test_turns_end_where_four_in_a_row_gain_nothing_or_half_of_all(
    turns: int, patience: int, model: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an iteration too, but not of the first. Plans are seen before each turn, so not the last."""
    plans, noises = list[Plan](), to_fit(model, turns, 4, 0)
    goal, last = solution(noises, [10.0], 16, NO_CACHE)[0.0], patience - 1

    def recorded(part: Noises, goal: Tensor, plan: Plan, *others: Any) -> tuple[np.ndarray, np.ndarray]:
        plans.append(plan)
        return normal_equations(part, goal, plan, *others)

    monkeypatch.setattr(refining, "normal_equations", recorded)
    refined = refine(plan_of(model), noises, goal, 40, NO_CACHE, at_a_turn=(1, 1)).plan
    for start, more in ((plan_of(model), True), (refined, False)):
        plans.clear()
        found = refine(start, noises, goal, 40, NO_CACHE, at_a_turn=(1, 1))
        assert turns + more * patience < len(plans) < 40 * turns if more else len(plans) == turns
        assert len(found.errors) == 1 + -(-len(plans) // turns)
        errors = [errors_of(plan, noises, goal).mean() for plan in plans]
        assert min(errors[-last:]) > 0.99 * min(errors[:-last])
        ends = range(turns, len(errors) - 1)
        assert all(min(errors[end - last : end + 1]) <= 0.99 * min(errors[: end - last]) for end in ends)


def test_memory_is_bounded_and_pieces_make_the_same(model: Denoiser, noises: Noises, goal: Tensor) -> None:
    plan = plan_of(model)
    one = noise_bytes(len(parameters(plan)), 3, 16, 16)
    assert noises_at_once(plan, goal, PIXELS) == BLOCK
    assert refinement_bytes(one) == BLOCK * one
    whole = normal_equations(noises, goal, plan, PIXELS, NO_CACHE)
    for room, many, told in ((one * 4, 4, one * 4), (one * 4 - 1, 3, one * 4 - 1), (one - 1, 1, one)):
        assert noises_at_once(plan, goal, PIXELS, room) == many
        assert refinement_bytes(one, room) == told
        parts = normal_equations(noises, goal, plan, PIXELS, NO_CACHE, many)
        for part, expected in zip(parts, whole, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-2)  # whose probes differ a little


def test_a_noise_takes_no_more_memory_than_is_said(model: Denoiser, noises: Noises) -> None:
    """The derivatives of all terms, and of what is seen."""
    plan = plan_of(model)
    numbers = len(parameters(plan))
    _, slopes = derivatives(noises.network, noises.noise, plan)
    assert slopes.nbytes / len(noises) * 3 < noise_bytes(numbers, 3, 16, 16)
    assert noise_bytes(numbers, 3, 16, 16) == 8 * numbers * (6 * 16 + 48)


def test_pieces_are_all_in_order(noises: Noises) -> None:
    found = list(pieces(noises, 4))
    assert [(rows.start, rows.stop) for rows, _ in found] == [(0, 4), (4, 8), (8, 10)]
    np.testing.assert_array_equal(torch.cat([part.noise for _, part in found]), noises.noise)


def test_a_step_solves_the_damped_equations_in_units_of_the_diagonal(model: Denoiser) -> None:
    plan = plan_of(model)
    count = len(parameters(plan))
    root = np.random.default_rng(0).normal(size=(count + 2, count)) * np.logspace(-3, 1, count)
    matrix, slope = root.T @ root, 1e-3 * root.sum(0)
    for damping in (0.0, 0.1):
        moved = parameters(step(plan, matrix, slope, damping, (0.0, np.inf))) - parameters(plan)
        np.testing.assert_allclose((matrix + damping * np.diag(np.diag(matrix))) @ moved, -slope, rtol=1e-5, atol=1e-9)
    matrix[:, 2] = matrix[2] = slope[2] = 0  # a number that changes nothing stays
    moved = parameters(step(plan, matrix, slope, 0.1, (0.0, np.inf)))
    assert moved[2] == pytest.approx(parameters(plan)[2])
    assert np.isfinite(moved).all()


def test_levels_stay_within_those_that_the_model_knows(model: Denoiser) -> None:
    plan = plan_of(model)
    values = parameters(plan) + 100 * (parameters(plan) == np.log(plan.sigmas[0]))
    assert with_parameters(plan, values, LIMITS).sigmas == pytest.approx((10.0, *plan.sigmas[1:]))
    far = step(plan, np.eye(len(values)), -50 * np.ones(len(values)), 0.0, LIMITS)
    assert set(far.sigmas) == {10.0}


class Strict(Wrapped):
    """Knows the model's noise levels alone, and no value beyond ``largest``: there its answers are no numbers."""

    largest, asked, lost = float("inf"), 0.0, 0

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        assert float(torch.as_tensor(sigma).max()) <= self.spec.sigma_max * (1 + 1e-6)
        answers, size = self.model(x, sigma, **conditions), x.abs().max().item()
        self.asked, self.lost = max(size, self.asked), self.lost + (size > self.largest)
        return answers if size <= self.largest else answers * float("nan")


def test_a_network_is_asked_at_levels_that_it_knows_and_may_fail_far_off(model: Denoiser) -> None:
    """What fails is not taken, and tells nothing."""
    strict = Strict(model)
    noises = to_fit(strict, 6, 4, 0)
    goal = solution(noises, [10.0], 16, NO_CACHE)[0.0]
    strict.asked = 0.0
    derivatives(noises.network, noises.noise, plan_of(model))
    strict.largest = 1.001 * strict.asked
    found = refine(plan_of(model), noises, goal, 3, NO_CACHE)
    assert strict.lost > 0
    assert min(found.errors) < found.errors[0]


@pytest.mark.parametrize(
    ("power", "mean"),
    [(0, lambda errors: np.exp(np.log(errors).mean())), (1, np.mean), (2, lambda errors: np.sqrt((errors**2).mean()))],
)
def test_what_is_lowered_is_a_mean_of_that_power(
    power: int,
    mean: Callable[[np.ndarray], float],
    model: Denoiser,
    noises: Noises,
    goal: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Least squares of images that are weighted so have the mean's own slope, but for the mean's factor."""
    plan, powers = plan_of(model), set[int]()

    def recorded(*told: Any) -> tuple[np.ndarray, np.ndarray]:
        powers.add(told[-1])
        return normal_equations(*told)

    with monkeypatch.context() as patch:
        patch.setattr(refining, "normal_equations", recorded)
        found = refine(plan, noises, goal, 2, NO_CACHE, power=power)
    assert powers == {power}
    assert found.errors[0] == pytest.approx(mean(errors_of(plan, noises, goal)), rel=1e-6)
    assert min(found.errors) == pytest.approx(mean(errors_of(found.plan, noises, goal)), rel=1e-6)
    assert min(found.errors) < found.errors[0]
    fitting = noises.part(slice(noises.fitting))
    _, slope = normal_equations(fitting, goal, plan, PIXELS, NO_CACHE, power=power)
    each = [
        normal_equations(fitting.some([place]), goal[[place]], plan, PIXELS, NO_CACHE, power=2)[1]
        for place in range(noises.fitting)
    ]
    errors = image_errors(fitting.sample(plan) - goal[: noises.fitting]).numpy()
    np.testing.assert_allclose(
        slope, sum(e ** (power - 2) * one for e, one in zip(errors, each, strict=True)), rtol=1e-3
    )


def test_a_view_may_fail_far_off_too(model: Denoiser, noises: Noises) -> None:
    """But not on the images that a refinement aims at."""
    goal, lost = solution(noises, [10.0], 16, NO_CACHE)[0.0], []
    largest = 1.1 * max(goal.abs().max(), sample(noises.network, noises.noise, plan_of(model)).abs().max())

    def see(images: Tensor) -> Tensor:
        far = images.flatten(1).abs().amax(1, keepdim=True) > largest
        lost.append(bool(far.any()))
        return images.flatten(1) / ~far

    found = refine(plan_of(model), noises, goal, 3, NO_CACHE, view=View("mine", see))
    assert any(lost)
    assert np.isfinite(found.errors).all()
    assert min(found.errors) < found.errors[0]


def test_evaluations_are_as_many_as_the_plans(model: Denoiser, noises: Noises, goal: Tensor) -> None:
    with pytest.raises(UserError, match="the plan has 3 evaluations, and there are functions for 1"):
        refine_over([model], plan_of(model), noises, goal, 1, NO_CACHE)
    with pytest.raises(UserError, match="cannot stand for"):
        refine_over([toy((1, 5, 5))] * 3, plan_of(model), noises, goal, 1, NO_CACHE)
