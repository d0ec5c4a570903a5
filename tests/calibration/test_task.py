"""What "auto" comes to, what it takes and refines, and what a fit costs by its parts."""

import math
from copy import copy
from dataclasses import replace

import pytest
import torch

from edge_sampler.calibration import calibrate as calibrate_module
from edge_sampler.calibration import rounding
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.candidates import grid_of
from edge_sampler.calibration.chosen_levels import START, USUAL
from edge_sampler.calibration.refinement import MEMORY, iteration_cost, noise_bytes, number_of_turns, parameters
from edge_sampler.calibration.scout import Attempt, Ground
from edge_sampler.calibration.settings import AUTO, REFINED, Settings
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.task import check_refines, derivative_bytes, task_of
from edge_sampler.calibration.trace import AFS
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError
from tests.conftest import report_of


def small(nfe: int, **changes: object) -> Settings:
    return Settings(nfe, **({"fit_batch": 24, "heldout": 16, "fine_steps": 4} | changes))  # type: ignore[arg-type]


def test_auto_takes_what_measured_best(mixture: Denoiser) -> None:
    plan = calibrate(mixture, small(5, schedule="edm"))
    compared = report_of(plan).compared
    assert set(compared) == {name + AFS for name in AUTO}
    assert compared[plan.solver] == min(compared.values())


def test_auto_is_refined_once_by_itself(mixture: Denoiser) -> None:
    plans = [calibrate(mixture, small(4, refine=refine)) for refine in (0, 2)]
    assert [plan.solver for plan in plans] == ["auto", "iia-ddim" + AFS + REFINED]
    once, twice = map(report_of, plans)
    assert once.schedule == "chosen"
    assert len(once.refinement) == 2
    assert once.refinement[1] < once.refinement[0]
    assert twice.refinement[:2] == once.refinement


def test_refinement_moves_the_levels_of_many_steps_alone(mixture: Denoiser) -> None:
    """A search for them costs more than it gains; of few steps it is cheap. A solver of one's choice has one always."""
    for nfe, refine, searches in ((5, 0, True), (6, 0, False), (5, 3, True), (6, 3, False)):
        assert (task_of(mixture, Settings(nfe, refine=refine)).effort == USUAL) == searches
    assert task_of(mixture, Settings(9, "iia-ddim", schedule="chosen", refine=3)).effort == USUAL
    assert START.cost(11, 64) == 4 * 11 * 64 < USUAL.cost(11, 64) / 5


def test_auto_is_not_refined_where_levels_are_given_or_samples_are_large(mixture: Denoiser) -> None:
    asked = small(4, schedule="edm", afs=False)
    plan = calibrate(mixture, asked)
    assert plan.sigmas == pytest.approx(grid_of(mixture, "edm")(4)[:-1])
    assert plan.solver == min(report_of(plan).compared, key=report_of(plan).compared.__getitem__)
    large, most = copy(mixture), MEMORY // derivative_bytes(mixture.spec, 4, afs=True) * math.prod(mixture.spec.shape)
    for shape, iterations in (((1, 1, most), (1, 3)), ((1, 2, most), (0, 3))):
        large.spec = replace(mixture.spec, inputs=replace(mixture.spec.inputs, shape=shape))
        assert tuple(task_of(large, Settings(4, refine=refine)).iterations for refine in (0, 3)) == iterations


def test_auto_takes_what_errs_least_by_the_mean_of_images_errors(
    mixture: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the mean of their squares, which a few images decide."""
    wrong = {"iia-ipndm": (0.3, 0.3), "iia-ddim": (0.0, 0.4), "iia-dpmpp-2m": (0.25, 0.25), "ipndm": (0.5, 0.5)}

    def tried(scheme: Scheme, ground: Ground) -> Attempt:
        assert ground.noises.fitting == len(ground.noises) / 2
        return Attempt(torch.tensor(wrong[scheme.solver.name]), ())

    monkeypatch.setattr("edge_sampler.calibration.candidates.attempt", tried)
    plan = calibrate(mixture, Settings(2, fit_batch=2, heldout=2, schedule="edm", afs=False))
    assert plan.solver == "iia-ddim"
    assert report_of(plan).compared == pytest.approx({name: sum(errors) / 2 for name, errors in wrong.items()})


def test_auto_takes_nothing_that_float32_cannot_hold(mixture: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next best then, and where there is none, the user is told."""
    weighs = {"iia-ipndm": 1.0, "iia-ddim": 1e9, "iia-dpmpp-2m": 1e9, "ipndm": 1.0}
    errors = {"iia-ipndm": 0.3, "iia-ddim": 0.1, "iia-dpmpp-2m": 0.2, "ipndm": 0.5}
    monkeypatch.setattr(calibrate_module, "race", lambda schemes, *_: [errors[one.solver.name] for one in schemes])
    for place in (calibrate_module, rounding):
        monkeypatch.setattr(place, "largest_weight", lambda plan: weighs[plan.solver])
    asked = Settings(2, fit_batch=2, heldout=2, schedule="edm", afs=False)
    assert calibrate(mixture, asked).solver == "iia-ipndm"
    weighs.update(dict.fromkeys(weighs, 1e9))
    with pytest.raises(UserError, match=r"weighs the network's answers by up to 1\.0e\+09"):
        calibrate(mixture, asked)


def test_a_race_and_a_refinement_cost_what_they_ask(mixture: Denoiser) -> None:
    """All four solvers run on the held-out noises; plans before and after refinement are judged there."""
    settings = Settings(3, schedule="edm", afs=False, fit_batch=20, heldout=7)
    race, one = task_of(mixture, settings), task_of(mixture, replace(settings, solver="iia-ddim"))
    assert (race.race_cost(7), one.race_cost(7)) == (4 * 3 * 7, 0)
    refined = task_of(mixture, replace(settings, solver="iia-ddim", refine=2))
    iteration = iteration_cost([1, 2, 3], 20, 7, number_of_turns(20))
    assert refined.cost() - one.cost() == 2 * iteration + 2 * 3 * 7


@pytest.mark.parametrize("solver", ["ddim", "ddim-clip"])
@pytest.mark.parametrize("afs", [False, True])
def test_derivatives_are_by_all_numbers_of_a_table(afs: bool, solver: str, mixture: Denoiser) -> None:
    settings = Settings(4, solver, afs=afs, fit_batch=2, heldout=2, refine=1)
    plan, task = calibrate(mixture, settings), task_of(mixture, settings)
    values = math.prod(mixture.spec.shape)
    assert derivative_bytes(mixture.spec, 4, afs, task.columns) == noise_bytes(len(parameters(plan)), 4, values, values)
    assert report_of(plan).evaluations <= task.cost()


def test_a_sampler_is_called_as_its_plan_will_be(mixture: Denoiser) -> None:
    """None where it is not known before the fit."""
    for solver, changes in (
        ("auto", {}),
        ("auto", {"refine": 1}),
        ("auto", {"refine": 1, "afs": False}),
        ("iia-ddim", {"afs": True, "refine": 1}),
        ("ddim", {"schedule": "chosen"}),
        ("euler", {}),
    ):
        settings = small(3, solver=solver, **changes)
        assert task_of(mixture, settings).sampler == calibrate(mixture, settings).solver
    assert task_of(mixture, small(3, schedule="edm")).sampler is None


def test_what_changes_nothing_since_nothing_is_refined_is_refused(mixture: Denoiser) -> None:
    """So it is where a sample is too large for what "auto" would do."""
    large, names = copy(mixture), ("refine_on", "refine_error")
    large.spec = replace(mixture.spec, inputs=replace(mixture.spec.inputs, shape=(3, 512, 512)))
    for model, refine in ((mixture, 0), (mixture, 1), (large, 1)):
        check_refines(model, Settings(9, refine=refine, refine_on="lpips", refine_error="rms"), *names)
    for refused, told in (
        (Settings(9, refine_on="lpips"), "refine-on lpips"),
        (Settings(9, "iia-ddim", refine_on="features"), "refine-on features"),
        (Settings(9, refine_error="rms"), "refine-error rms"),
    ):
        with pytest.raises(UserError, match=f"^--{told} changes nothing without --refine"):
            check_refines(large, refused, *names)
    check_refines(large, Settings(9, refine_on="lpips"), "refine_error")
