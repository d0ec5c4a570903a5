"""Least squares for γ: what it finds, what it refuses to be broken by."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from edge_sampler.calibration.calibrate import calibrate, has_table
from edge_sampler.calibration.candidates import grid_of, make_candidate, noises_of, race, scheme_of
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.noise_sets import to_fit, to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution, trajectory
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import fit, gram, mean_error, rms, solve
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.schedules import subdivide
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import ALL_SOLVERS, find
from edge_sampler.calibration.solvers.base import Scheme, base_step
from edge_sampler.calibration.solvers.heun import SINGLE_NEAR
from edge_sampler.calibration.trace import trace
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import silent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample
from tests.calibration.toys import calls_of, of_classes
from tests.conftest import report_of

BASES = {
    "iia-ddim": "ddim",
    "iia-ddim-guided": "ddim",
    "iia-dpmpp-2m": "dpmpp-2m",
    "biia-edm": "heun",
    "iia-edm": "heun",
    "iia-ipndm": "ipndm",
    "iia-spndm": "spndm",
}


def small(nfe: int, solver: str, **changes: object) -> Settings:
    return Settings(nfe, solver, **({"fit_batch": 24, "heldout": 16, "fine_steps": 4} | changes))  # type: ignore[arg-type]


def test_solve_finds_the_weights_that_made_the_target() -> None:
    directions = torch.randn(3, 500, generator=torch.Generator().manual_seed(0)).double()
    directions[1] *= 1e-6  # very different lengths are no difficulty
    weights = torch.tensor([0.5, 2e5, -3.0]).double()
    target = weights @ directions
    np.testing.assert_allclose(solve(gram([*directions, target]), ridge=0.0), weights, rtol=1e-9)


@given(strategies.integers(1, 5), strategies.integers(0, 2**32 - 1), strategies.sampled_from([0.0, 1e-6, 1.0]))
@settings(max_examples=60)
def test_singular_systems_give_finite_weights_that_do_no_harm(count: int, seed: int, ridge: float) -> None:
    """Equal, opposite and vanishing directions among others: nothing blows up, and the fit never adds error."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(2, 40, generator=generator).double()
    choices = [base[0], base[1], -base[0], base[0] + base[1], torch.zeros(40).double(), base[0] * 1e-200]
    directions = [choices[i] for i in torch.randint(len(choices), (count,), generator=generator).tolist()]
    target = torch.randn(40, generator=generator).double()
    gamma = solve(gram([*directions, target]), ridge)
    assert np.isfinite(gamma).all()
    left = target - sum(weight * direction for weight, direction in zip(gamma.tolist(), directions, strict=True))
    assert rms(left) <= rms(target) * (1 + 1e-9)


def test_gram_matrices_add_up_over_batches() -> None:
    tensors = torch.randn(4, 30, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    parts = gram(list(tensors[:, :11])) + gram(list(tensors[:, 11:]))
    np.testing.assert_allclose(parts, gram(list(tensors)), rtol=1e-12)


def test_ridge_pulls_toward_the_base_solver() -> None:
    directions = torch.randn(2, 100, generator=torch.Generator().manual_seed(0)).double()
    products = gram([*directions, directions.sum(0)])
    lengths = [np.abs(solve(products, ridge)).sum() for ridge in (0.0, 0.1, 10.0, 1e6)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] < 1e-5


@pytest.mark.parametrize("name", BASES)
def test_fitting_lowers_the_error_of_every_solver(name: str, mixture: Denoiser) -> None:
    """Globally fitted at 8 evaluations, on noises that the fit has not seen."""
    assert set(BASES) == {solver.name for solver in ALL_SOLVERS if solver.history is not None}
    plan = calibrate(mixture, small(8, name, fit_target="global"))
    before = error_against_converged(mixture, calibrate(mixture, small(8, BASES[name])), 32)
    assert error_against_converged(mixture, plan, 32) < before
    for step in report_of(plan).steps:
        assert step.error_after <= step.error_before


@pytest.mark.parametrize("target", ["local", "global"])
def test_calibration_is_deterministic_for_a_seed(target: str, mixture: Denoiser) -> None:
    first, again = (calibrate(mixture, small(5, "iia-ddim", fit_target=target)) for _ in range(2))
    other = calibrate(mixture, small(5, "iia-ddim", fit_target=target, seed=1))
    assert first.sha256 == again.sha256 != other.sha256


def test_what_is_not_fitted_costs_held_out_images_alone(mixture: Denoiser) -> None:
    noises, wanted = to_fit(mixture, 5, 3, 0), Settings(6)
    heldout, goal = noises.heldout, noises.noise.flip(0)  # any images will do
    scheme = scheme_of(find("ipndm"), grid_of(mixture, "edm"), wanted)
    made = make_candidate(scheme, noises, dict.fromkeys(scheme.sigmas, goal), "global", wanted)
    assert noises.network.meter.evaluations == 6 * 3
    wrong = sample(heldout.network, heldout.noise, made.plan) - goal[noises.fitting :]
    np.testing.assert_allclose([made.error, made.rms_error], [mean_error(wrong), rms(wrong)], rtol=1e-5)


@pytest.mark.parametrize("target", ["local", "global"])
def test_a_fit_is_made_once(target: str, mixture: Denoiser, tmp_path: Path) -> None:
    """Asked for again it calls no network, and reports the same; what decides a fit makes another one."""
    cache, wanted = Cache(tmp_path), small(4, "iia-ddim", fit_target=target)
    calls = calls_of(mixture)
    whole, first = calibrate(mixture, wanted, silent, cache), len(calls)
    again = calibrate(mixture, wanted, silent, cache)
    assert len(calls) == first > 0
    assert again.sha256 == whole.sha256 == calibrate(mixture, wanted).sha256
    assert report_of(again) == replace(report_of(whole), seconds=report_of(again).seconds)
    for change in ({"ridge": 0.1}, {"history": 2}, {"solver": "iia-ipndm"}, {"fit_batch": 9}):
        before = len(calls)
        other = calibrate(mixture, replace(wanted, **change), silent, cache)
        assert len(calls) > before
        assert report_of(other).steps != report_of(whole).steps


def test_a_correction_that_does_not_help_is_dropped(network: Network, noise: torch.Tensor) -> None:
    """Targets whose fitting half wants the opposite of the held-out half: every step must keep the base solver."""
    sigmas = [80.0, 10.0, 1.0, 0.1, 0.0]
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0]).double().reshape(4, 1, 1, 1)
    x = noise[[0, 1, 0, 1]] * 80.0
    bases: list[torch.Tensor] = []

    def record(base: torch.Tensor, directions: object) -> torch.Tensor:
        bases.append(base)
        return base

    find("ddim").run(network, x, sigmas, record, 0)
    bend = torch.randn(x[:2].shape, generator=torch.Generator().manual_seed(0)).double().repeat(2, 1, 1, 1)
    scheme = Scheme(find("iia-ddim"), sigmas, 4, 1)
    steps, images = fit(scheme, network, x, lambda i, state: bases[i] + sign * bend, 2, 0.0)
    assert all(weight == 0 for step in steps for weight in step.gamma)
    torch.testing.assert_close(images, bases[-1])


def test_a_fixed_solver_costs_nothing(mixture: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a fixed solver needs no evaluation")

    monkeypatch.setattr(Network, "__call__", refuse)
    assert calibrate(mixture, Settings(10, "ipndm")).report is None


def test_the_reference_has_converged(network: Network, noise: torch.Tensor) -> None:
    """Twice the steps move it by far less than the errors it measures."""
    once, twice = (trajectory(network, noise * 80.0, [80.0], steps)[0.0] for steps in (128, 256))
    assert rms(once - twice) < 2e-3


def test_the_reference_comes_nearer_than_heun_at_the_same_cost(network: Network, noise: torch.Tensor) -> None:
    x = noise * 80.0
    goal = trajectory(network, x, [80.0], 512)[0.0]
    network.meter.evaluations = 0
    by_heun = find("heun").run(network, x, subdivide([80.0, 0.0], 49), base_step, history=0)
    spent = network.meter.evaluations // len(noise)
    assert cost(1, spent) == spent == 97
    assert rms(trajectory(network, x, [80.0], spent)[0.0] - goal) < rms(by_heun - goal)


def test_the_reference_costs_what_it_says(network: Network, noise: torch.Tensor) -> None:
    for levels, fine_steps in (([80.0], 10), ([80.0, 5.0, 0.3], 50)):
        network.meter.evaluations = 0
        states = trajectory(network, noise * 80.0, levels, fine_steps)
        assert set(states) == {*levels, 0.0}
        assert network.meter.evaluations == cost(len(levels), fine_steps) * len(noise)


def test_heuns_single_evaluation_is_well_placed(mixture: Denoiser) -> None:
    """At even NFE the chosen place beats the first and the last transition."""
    solver, errors = find("heun"), list[float]()
    grid = grid_of(mixture, mixture.spec.schedule)
    for near in (80.0, SINGLE_NEAR, 0.002):
        placed = replace(solver, run=partial(solver.run, single_near=near))
        errors.append(error_against_converged(mixture, trace(scheme_of(placed, grid, Settings(10))), 48))
    assert errors[1] < min(errors[0], errors[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nfe": 0}, "nfe is 0"),
        ({"solver": "hein"}, "unknown solver"),
        ({"schedule": "linear"}, "unknown schedule"),
        ({"fit_target": "far"}, "unknown fit-target"),
        ({"fine_steps": 1}, "fine-steps is 1"),
        ({"reference_steps": 0}, "reference-steps is 0"),
        ({"fit_batch": 0}, "fit-batch is 0"),
        ({"heldout": 0}, "heldout is 0"),
        ({"ridge": -1.0}, "ridge is -1"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"refine": -1}, "refine is -1"),
        ({"history": 5}, "history is 5"),
        ({"history": -1}, "history is -1"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**({"nfe": 5} | changes))  # type: ignore[arg-type]


def test_a_broken_network_is_noticed(mixture: Denoiser) -> None:
    class Broken(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.spec, self.weight = mixture.spec, torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, sigma: object, class_labels: object = None) -> torch.Tensor:
            return x * float("nan")

    with pytest.raises(UserError, match="NaN or infinity at noise level 80"):
        calibrate(Broken(), small(3, "iia-ddim"))


def test_noises_to_fit_to_hold_out_to_judge_and_to_sample_are_all_different(mixture: Denoiser) -> None:
    sampled = unit_noise(range(8), mixture.spec.shape)
    sets = [to_fit(mixture, 4, 4, 0).noise, to_fit(mixture, 4, 4, 1).noise, to_judge(mixture, 8).noise]
    every = np.concatenate([*sets, sampled]).reshape(32, -1)
    assert len(np.unique(every.round(6), axis=0)) == 32


def test_a_noise_keeps_its_class_in_any_set() -> None:
    model = of_classes()
    few, many = (to_judge(model, count).network.conditions["class_labels"] for count in (3, 9))
    assert few.tolist() == many[:3].tolist()
    torch.testing.assert_close(to_fit(conditioned(model, 1), 3, 2, 0).noise, to_fit(model, 3, 2, 0).noise)


def test_guidance_is_fitted_for() -> None:
    """The paper's guided form lowers the error of guided DDIM."""
    guided = conditioned(of_classes(), guidance=2.0, null_class=0)
    network = to_judge(guided, 3).network
    network(torch.zeros(3, *guided.spec.shape), 1.0)
    assert network.meter.evaluations == 6
    plan = calibrate(guided, small(4, "iia-ddim-guided"))
    assert report_of(plan).fingerprint == guided.spec.fingerprint
    assert any(step.error_after < step.error_before for step in report_of(plan).steps)


def test_a_folder_that_cannot_keep_results_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep results in .*file: .*; see --cache"):
        Cache(tmp_path / "file")


def test_grids_have_the_models_own_range(mixture: Denoiser) -> None:
    sigmas = scheme_of(find("ddim"), grid_of(mixture, "edm"), Settings(4, "ddim")).sigmas
    assert sigmas[0] == pytest.approx(mixture.spec.sigma_max)
    assert sigmas[-2] == pytest.approx(mixture.spec.sigma_min)


def test_a_solver_that_divides_by_a_step_needs_levels_apart(mixture: Denoiser) -> None:
    settings = Settings(3)

    def has(name: str, *levels: float) -> bool:
        return has_table(scheme_of(find(name), lambda steps: list(levels), settings))

    assert has("dpmpp-2m", 5.0, 2.0, 1.0, 0.0)
    assert not has("dpmpp-2m", 5.0, 5.0, 1.0, 0.0)
    assert has("ddim", 5.0, 5.0, 1.0, 0.0)


def test_the_race_is_on_heldout_noises_and_is_kept(mixture: Denoiser, tmp_path: Path) -> None:
    """What a fitted solver errs there tells it from others; a second time no network is called."""
    asked, cache = Settings(4, fit_batch=4, heldout=8, schedule="edm"), Cache(tmp_path)
    noises = noises_of(mixture, asked)
    schemes = [scheme_of(find(name), grid_of(mixture, "edm"), asked) for name in ("ddim", "iia-ddim")]
    fine = solution(noises, [sigma for sigma in schemes[0].sigmas if sigma > 0], 32, NO_CACHE)
    calls = calls_of(mixture)
    before = noises.network.meter.evaluations
    errors, first = race(schemes, noises, fine, cache), len(calls)
    assert noises.network.meter.evaluations - before == 2 * 4 * 8
    assert errors[1] < errors[0]
    assert race(schemes, noises, fine, cache) == errors
    assert len(calls) == first > 0
    assert race(schemes[::-1], noises, fine, cache) == errors[::-1]
    assert len(calls) == 2 * first


def test_the_fine_trajectory_has_steps_enough() -> None:
    """As many as the reference has to have converged, and as many as an interval is cut into, in each."""
    assert Settings(5, fine_steps=10).trajectory_steps == REFERENCE_STEPS > 50
    assert Settings(50, fine_steps=10).trajectory_steps == 500 > REFERENCE_STEPS
    assert Settings(5, fine_steps=2, reference_steps=24).trajectory_steps == 24


def test_a_fit_aims_at_a_trajectory_of_so_many_steps(mixture: Denoiser) -> None:
    few = Settings(3, "iia-ddim", fit_target="global", fine_steps=2, fit_batch=8, heldout=4, reference_steps=12)
    spent = [report_of(calibrate(mixture, replace(few, reference_steps=steps))).evaluations for steps in (12, 24)]
    assert spent[1] - spent[0] == 12 * (8 + 4)
