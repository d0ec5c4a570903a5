"""Joint refinement: its derivatives are right, it lowers the error, and it goes on after a kill."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler import models
from edge_sampler.calibration import refinement as refining
from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.calibrate import calibrate, refit
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.derivatives import derivative_cost, derivatives
from edge_sampler.calibration.evaluate.network import Meter
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import image_errors
from edge_sampler.calibration.refinement import (
    normal_equations,
    parameters,
    refine,
    refine_over,
    with_parameters,
)
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import trace
from edge_sampler.calibration.views import PIXELS, viewer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import report_of


@pytest.fixture(scope="module")
def noises(digits: Denoiser) -> Noises:
    return to_fit(digits, 16, 12, 0)


@pytest.fixture(scope="module")
def converged(noises: Noises, digits: Denoiser) -> torch.Tensor:
    return solution(noises, [digits.spec.sigma_max], 24, NO_CACHE)[0.0]


def plan_of(digits: Denoiser, nfe: int, mean: torch.Tensor | None = None) -> Plan:
    return trace(scheme_of(find("ddim"), grid_of(digits, "edm"), Settings(nfe), mean))


def test_parameters_are_the_whole_plan(digits: Denoiser) -> None:
    plan = plan_of(digits, 4)
    values = parameters(plan)
    assert len(values) == 4 + sum(range(1, 6))
    again = with_parameters(plan, values)
    assert again.table == plan.table
    np.testing.assert_allclose(again.sigmas, plan.sigmas, rtol=1e-12)
    assert min(with_parameters(plan, values, (0.01, 50.0)).sigmas) == 0.01
    values[len(plan.table[0])] = 1000.0  # ln σ of a step that went too far
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max(with_parameters(plan, values, (0.01, 50.0)).sigmas) == 50.0


@pytest.mark.parametrize(("afs", "tolerance"), [(False, 0.15), (True, 0.2)])
def test_derivatives_predict_what_a_change_does(afs: bool, tolerance: float, digits: Denoiser, noises: Noises) -> None:
    """Each parameter moved by itself, against the linear prediction; and they cost what they say.

    A mean moves a state along one direction, in which a probe is less small than along noise.
    """
    few = noises.part(slice(0, 4))
    plan = plan_of(digits, 3, mean_image(noises, NO_CACHE) if afs else None)
    assert plan.afs == afs
    few.network.meter.evaluations = 0
    images, slopes = derivatives(few.network, few.noise, plan)
    assert few.network.meter.evaluations == derivative_cost([len(row) for row in plan.table[:-1]]) * 4
    torch.testing.assert_close(images, sample(few.network, few.noise, plan), rtol=1e-4, atol=1e-5)
    values = parameters(plan)
    assert len(slopes) == len(values) == 3 + sum(range(1, 5)) + 4 * afs
    for index, slope in enumerate(slopes):
        move = min(0.05, 5e-3 / slope.square().mean().sqrt().item())
        moved = values + move * np.eye(len(values))[index]
        change = sample(few.network, few.noise, with_parameters(plan, moved)) - images
        assert (change - move * slope).norm() < tolerance * change.norm() + 1e-4, index


def test_refinement_ends_where_heldout_images_come_no_nearer(digits: Denoiser) -> None:
    """Four noises are soon learned by heart."""
    noises = to_fit(digits, 4, 16, 0)
    goal = solution(noises, [digits.spec.sigma_max], 24, NO_CACHE)[0.0]
    errors = refine(plan_of(digits, 3), noises, goal, 40, NO_CACHE).errors
    gained = [min(errors[: end + 1]) <= 0.99 * min(errors[: max(1, end - 3)]) for end in range(4, len(errors))]
    assert gained == [True] * (len(gained) - 1) + [False]  # four turns in a row
    assert len(gained) > 1


def test_refinement_lowers_the_error_and_never_raises_it(
    digits: Denoiser, noises: Noises, converged: torch.Tensor
) -> None:
    refined = refine(plan_of(digits, 3), noises, converged, 40, NO_CACHE)
    assert len(refined.errors) < 41  # it ends where iterations hardly gain,
    assert refined.errors[1] == refined.errors[0]  # not where one found no way: the next one damps more
    assert min(refined.errors) < 0.7 * refined.errors[0]
    heldout = noises.heldout
    images = sample(heldout.network, heldout.noise, refined.plan)
    assert image_errors(images - converged[noises.fitting :]).mean().item() == pytest.approx(
        min(refined.errors), rel=1e-4
    )


def test_a_killed_refinement_goes_on_where_it_was(
    mixture: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, noises, made = plan_of(mixture, 4), to_fit(mixture, 40, 8, 0), 0  # two blocks of an iteration
    converged = solution(noises, [mixture.spec.sigma_max], 24, NO_CACHE)[0.0]
    killed_at = None

    def counted(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal made
        if made == killed_at:
            raise KeyboardInterrupt
        made += 1
        return derivatives(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(refining, "derivatives", counted)
    whole = refine(plan, noises, converged, 3, Cache(tmp_path / "whole")).plan
    blocks, made, killed_at = made, 0, 3
    with pytest.raises(KeyboardInterrupt):
        refine(plan, noises, converged, 3, Cache(tmp_path / "cut"))
    killed_at = None
    assert refine(plan, noises, converged, 3, Cache(tmp_path / "cut")).plan == whole
    assert made == blocks > 3  # none was made twice


def test_the_slope_is_that_of_the_mean_error(digits: Denoiser, noises: Noises, converged: torch.Tensor) -> None:
    """Image by image, so that a noise that errs ten times as much as another weighs no more."""
    plan, few, goal = plan_of(digits, 3), noises.part(slice(0, 6)), converged[:6].clone()
    goal[0] += 10.0
    _, slope = normal_equations(few, goal, plan, PIXELS, NO_CACHE)
    slope /= goal.numel()
    values = parameters(plan)

    def error(change: np.ndarray) -> float:
        return image_errors(sample(few.network, few.noise, with_parameters(plan, values + change)) - goal).mean().item()

    for index in np.argsort(-np.abs(slope))[:4]:
        move = 1e-3 * np.eye(len(values))[index]
        assert (error(move) - error(-move)) / 2e-3 == pytest.approx(slope[index], rel=0.1), index


def test_refinement_on_features_lowers_their_error() -> None:
    fashion = models.load("edm-fashion")
    noises = to_fit(fashion, 8, 8, 0)
    goal = solution(noises, [fashion.spec.sigma_max], 16, NO_CACHE)[0.0]
    plan = plan_of(fashion, 2)
    see, heldout = viewer("features", fashion), noises.heldout
    refined = refine(plan, noises, goal, 3, NO_CACHE, view=see)

    def apart(plan: Plan) -> float:
        return (
            image_errors(see(sample(heldout.network, heldout.noise, plan)) - see(goal[noises.fitting :])).mean().item()
        )

    assert apart(refined.plan) == pytest.approx(min(refined.errors), rel=1e-3)
    assert apart(refined.plan) < 0.95 * apart(plan)


class Rounded(Wrapped):
    """Answers of a network too loud or too quiet, rounded to so many parts of a pixel: quantised, with other scales."""

    def __init__(self, model: Denoiser, gain: float, parts: int) -> None:
        super().__init__(model, architecture=f"{gain}, rounded to {parts}")
        self.gain, self.parts = gain, parts

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        return (self.gain * self.model(x, sigma, **conditions) * self.parts).round() / self.parts


@pytest.fixture(scope="module")
def rounded(digits: Denoiser) -> list[Denoiser]:
    """One for each of three evaluations."""
    return [Rounded(digits, gain, parts) for gain, parts in ((0.9, 4), (1.1, 20), (0.85, 10))]


def errors_of(plan: Plan, evaluations: Sequence[Denoiser], noises: Noises, converged: Tensor) -> Tensor:
    """[n], on the held-out noises, of a sampler with these evaluations, in this order."""
    heldout, turn = noises.heldout, iter(evaluations)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        with torch.inference_mode():
            return next(turn)(x.float(), sigma).double()

    images = sample(denoise, heldout.noise, plan)
    return image_errors(images - converged[noises.fitting :])


def geometric(errors: Tensor) -> float:
    return errors.log().mean().exp().item()


def test_a_plan_is_refined_over_evaluations_that_differ(
    digits: Denoiser, rounded: list[Denoiser], noises: Noises, converged: Tensor, tmp_path: Path
) -> None:
    """So that rounded evaluations come nearer to the exact network's converged images, each in its own place."""
    cache, plan = Cache(tmp_path), plan_of(digits, 3)
    exact = refine(plan, noises, converged, 3, cache).plan
    found = refine_over(rounded, exact, noises, converged, 4, cache)
    before, after = (geometric(errors_of(one, rounded, noises, converged)) for one in (exact, found.plan))
    assert found.errors[0] == pytest.approx(before, rel=1e-4)  # and not the exact network's, which are kept beside
    assert min(found.errors) == pytest.approx(after, rel=1e-4)
    spoilt = before - geometric(errors_of(exact, [digits] * 3, noises, converged))
    assert spoilt > 0.01
    assert after < before - 0.7 * spoilt
    assert after < 0.9 * geometric(errors_of(found.plan, rounded[::-1], noises, converged))


def test_images_far_off_decide_nothing_where_answers_are_rounded(
    digits: Denoiser, rounded: list[Denoiser], noises: Noises, converged: Tensor
) -> None:
    plan, few, goal = plan_of(digits, 2), noises.part(slice(0, 8)), converged[:8].clone()
    goal[5:] += 1e4
    for power, least, most in ((0, 0.0, 0.01), (1, 0.1, np.inf)):
        whole, of_others = (
            normal_equations(few.over(rounded[:2]).part(slice(0, n)), goal[:n], plan, PIXELS, NO_CACHE, power=power)[1]
            for n in (8, 5)
        )
        assert least <= np.abs(whole - of_others).max() / np.abs(of_others).max() <= most


def test_derivatives_are_the_models_where_evaluations_round(
    digits: Denoiser, rounded: list[Denoiser], noises: Noises
) -> None:
    """At the states that rounding leads to; differences of rounded answers would be whole steps, or nothing."""
    few, plan = noises.part(slice(0, 4)), plan_of(digits, 1)
    few.network.meter.evaluations = 0
    images, slopes = derivatives(few.over(rounded[:1]).network, few.noise, plan)
    assert few.network.meter.evaluations == (derivative_cost([1]) + 1) * 4
    exact_images, exact_slopes = derivatives(few.network, few.noise, plan)
    answers = few.over(rounded[:1]).network.at(0)(plan.table[0][0] * few.noise, plan.sigmas[0])
    torch.testing.assert_close(slopes[:-1], exact_slopes[:-1])
    torch.testing.assert_close(slopes[-1], answers)  # by its weight
    torch.testing.assert_close(images, plan.table[1][0] * few.noise + plan.table[1][1] * answers)
    assert (images - exact_images).abs().max() > 0.05


def test_evaluations_stand_for_the_models(
    digits: Denoiser, rounded: list[Denoiser], noises: Noises, converged: Tensor
) -> None:
    with pytest.raises(UserError, match="the plan has 4 evaluations, and there are functions for 3"):
        refine_over(rounded, plan_of(digits, 4), noises, converged, 1, NO_CACHE)
    others = [*rounded[:2], models.load("edm-fashion")]
    with pytest.raises(UserError, match="edm-fashion cannot stand for edm-digits: shape"):
        refine_over(others, plan_of(digits, 3), noises, converged, 1, NO_CACHE)


def test_a_fit_may_aim_at_another_models_images(digits: Denoiser, rounded: list[Denoiser]) -> None:
    settings = Settings(3, "iia-ipndm", fit_target="global", fit_batch=16, heldout=12, reference_steps=24)
    plan = calibrate(rounded[0], settings, towards=digits)
    assert report_of(plan).fingerprint == rounded[0].spec.fingerprint
    noises = to_fit(digits, 16, 12, 0)
    goal = solution(noises, plan.sigmas, 24, NO_CACHE)[0.0]
    own, found = (
        errors_of(one, rounded[:1] * 3, noises, goal).mean().item() for one in (calibrate(rounded[0], settings), plan)
    )
    assert found < 0.95 * own
    assert report_of(plan).compared["iia-ipndm"] == pytest.approx(found, rel=0.02)  # by other fine steps
    with pytest.raises(UserError, match="edm-digits cannot stand for edm-fashion"):
        calibrate(digits, settings, towards=models.load("edm-fashion"))
    with pytest.raises(UserError, match="ddim at fixed noise levels is not fitted"):
        calibrate(rounded[0], Settings(3, "ddim"), towards=digits)


def test_a_fitted_plan_is_refitted(digits: Denoiser, rounded: list[Denoiser]) -> None:
    settings = Settings(3, "iia-ddim", fit_target="global", fit_batch=8, heldout=8, reference_steps=24, refine=1)
    fitted = calibrate(digits, replace(settings, refine=0))
    refitted = refit(digits, rounded, fitted, settings)
    report = report_of(refitted)
    assert refitted.solver == "iia-ddim-refined"
    assert report.fingerprint == digits.spec.fingerprint  # whose bundle it goes into
    assert report.refinement[-1] < 0.95 * report.refinement[0]
    assert report.steps == report_of(fitted).steps
    again = refit(digits, rounded, refitted, replace(settings, refine=0))
    assert again.solver == refitted.solver
    assert report_of(again).heldout_rms_error == report.heldout_rms_error


def test_a_refined_plan_is_a_plan_like_any_other(mixture: Denoiser) -> None:
    settings = Settings(4, "iia-ddim", fit_target="global", fit_batch=32, heldout=16, refine=4)
    refined, fitted = (calibrate(mixture, s) for s in (settings, replace(settings, refine=0)))
    assert refined.solver == "iia-ddim-refined"
    assert refined.nfe == 4
    assert report_of(refined).heldout_rms_error < report_of(fitted).heldout_rms_error
    assert min(report_of(refined).refinement) < report_of(refined).refinement[0]
    assert max(refined.sigmas) <= mixture.spec.sigma_max


def test_a_plan_that_clips_is_refined(mixture: Denoiser) -> None:
    settings = Settings(3, "ddim-clip", fit_batch=16, heldout=16, refine=2)
    refined = calibrate(mixture, settings)
    assert refined.clip
    assert min(report_of(refined).refinement) < 0.8 * report_of(refined).refinement[0]


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    cache, made = Cache(tmp_path), []

    def compute() -> dict[str, np.ndarray]:
        made.append(1)
        return {"a": np.arange(3)}

    for _ in range(2):
        assert cache.recall({"x": 1}, compute, Meter())["a"].tolist() == [0, 1, 2]
    (stored,) = tmp_path.iterdir()
    stored.write_bytes(stored.read_bytes()[:40])
    assert cache.recall({"x": 1}, compute, Meter())["a"].tolist() == [0, 1, 2]
    assert len(made) == 2
