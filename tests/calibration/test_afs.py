"""The analytical first step: the mean is the mean, and the evaluation that it saves makes images better."""

from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sampler.calibration.afs import EACH, MOST_NUMBERS, labels_with_means, mean_image, mean_images
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.candidates import grid_of, make_candidate, scheme_of
from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.task import task_of
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import adapt
from edge_sampler.models.progress import Advance, silent
from edge_sampler.runtime.condition import CLASSES, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.calibration.toys import of_classes


def test_the_mean_is_that_of_the_networks_answers(mixture: Denoiser) -> None:
    """Over the noises that fit, and no others; 40 fill no whole block."""
    noises = to_fit(mixture, 40, 8, 0)
    answers = noises.network(80.0 * noises.noise[:40], 80.0)
    torch.testing.assert_close(mean_image(noises, NO_CACHE), answers.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["edm", "chosen"])
def test_it_is_worth_an_evaluation(schedule: str, mixture: Denoiser, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    plain = Settings(4, "iia-ddim", schedule, "global", fit_batch=32, heldout=16)
    plans = [calibrate(mixture, one, silent, cache) for one in (plain, replace(plain, afs=True))]
    assert [plan.solver for plan in plans] == ["iia-ddim", "iia-ddim-afs"]
    errors = [error_against_converged(mixture, plan, 32, silent, cache) for plan in plans]
    assert errors[1] < 0.95 * errors[0]


def test_each_label_has_the_mean_of_the_answers_that_are_told_it(tmp_path: Path) -> None:
    """Of the first noises that fit, whatever these are told; the last is of no label."""
    noises = to_fit(of_classes(), 40, 8, 0)
    means, first = mean_images(noises, NO_CACHE), 80.0 * noises.noise[:EACH]
    assert means.shape == (4, 1, 8, 8)
    for label in (0, 1, 2, -1):
        told = torch.full((EACH,), label)
        answers = replace(noises.network, conditions={CLASSES: told})(first, 80.0)
        torch.testing.assert_close(means[label], answers.mean(0), rtol=1e-5, atol=1e-6)
    kept = Cache(tmp_path)
    made = [(mean_images(noises, kept), noises.network.meter.evaluations) for _ in range(2)]
    assert [path.suffix for path in tmp_path.iterdir()] == [".result"]  # one of all labels
    assert torch.equal(made[0][0], made[1][0])
    assert made[1][1] - made[0][1] == 4 * EACH  # which count, whenever it was that they were asked
    few, totals = to_fit(of_classes(), 3, 2, 0), list[int]()

    def bars(what: str, total: int) -> AbstractContextManager[Advance]:
        totals.append(total)
        return silent(what, total)

    assert mean_images(few, NO_CACHE, bars).shape == means.shape
    assert totals == [few.network.meter.evaluations] == [4 * 3]


def test_a_mean_for_each_label_is_better_than_one(tmp_path: Path) -> None:
    model, cache = of_classes(), Cache(tmp_path)
    settings = Settings(3, "iia-ddim", "edm", "global", fit_batch=32, heldout=16, afs=True)
    noises = to_fit(model, 32, 16, 0)
    scheme = scheme_of(find("iia-ddim"), grid_of(model, "edm"), settings, mean_image(noises, cache))
    fine = solution(noises, scheme.sigmas[:-1], 64, cache)
    one = make_candidate(scheme, noises, fine, "global", settings, cache)
    each = calibrate(model, settings, silent, cache)
    assert each.report is not None
    assert each.report.heldout_rms_error < 0.8 * one.rms_error
    assert error_against_converged(model, each, 32, silent, cache) < 0.8 * error_against_converged(
        model, one.plan, 32, silent, cache
    )


def test_which_models_have_a_mean_for_each_label() -> None:
    several, single = of_classes(), Condition((), "int64", choices=5)
    assert labels_with_means(several.spec) == 4
    assert labels_with_means(conditioned(several, 1).spec) == 0
    for condition, labels in (
        (single, 5),
        (replace(single, null=4), 5),
        (replace(single, null=5), 6),
        (replace(single, null=7), 0),
        (replace(single, null=-2), 0),
        (replace(single, shape=(2,)), 0),
        (replace(single, dtype="float32"), 0),
        (replace(single, choices=MOST_NUMBERS // 64), MOST_NUMBERS // 64),
        (replace(single, choices=MOST_NUMBERS // 64 + 1), 0),
        (Condition((2,)), 0),
    ):
        assert labels_with_means(told({"kind": condition}).spec) == labels, condition
    assert labels_with_means(told({"kind": single, "size": single}).spec) == 0


def test_auto_uses_it_where_means_serve_every_image() -> None:
    """One of all labels does once the sampler is refined; what other conditions say has none."""
    plain, kind = Settings(2, schedule="edm", fit_batch=8, heldout=4), Condition((), "int64", choices=3)
    pairs, both = told({"kinds": Condition((2,), "int64", choices=5)}), told({"kind": kind, "size": kind})
    refined, least = replace(plain, refine=1), replace(plain, schedule=None, refine=0)
    for model, expected in (
        (of_classes(), (True, True, True)),
        (conditioned(of_classes(), 1), (True, True, True)),
        (both, (False, True, True)),
        (pairs, (False, False, False)),
    ):
        assert tuple(task_of(model, one).afs for one in (plain, refined, least)) == expected
    assert not task_of(both, replace(least, afs=False)).afs
    assert not task_of(both, replace(refined, solver="iia-ddim")).afs
    assert not task_of(large(both), least).afs  # too large to be refined by itself
    assert [np.shape(calibrate(both, one).mean) for one in (plain, least)] == [(0,), (1, 8, 8)]
    assert np.shape(calibrate(of_classes(), plain).mean) == (4, 1, 8, 8)


def told(conditions: dict[str, Condition]) -> Denoiser:
    return adapt(Shrinks(), (1, 8, 8), conditions=conditions, sigma_min=0.01, sigma_max=10.0)


def large(model: Denoiser) -> Denoiser:
    """One whose samples are so large that their derivatives are beyond what a refinement may hold."""
    model = copy(model)
    model.spec = replace(model.spec, inputs=replace(model.spec.inputs, shape=(3, 1024, 1024)))
    return model


class Shrinks(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        for value in told.values():
            x = x + value.reshape(len(value), -1).sum(1).view(-1, 1, 1, 1)
        return x.tanh()


def test_data_of_several_sizes_have_no_mean() -> None:
    model = adapt(Shrinks(), ("length", 2), axes={"length": (2, 4, 8)})
    settings = Settings(2, schedule="edm", fit_batch=8, heldout=4)
    assert not calibrate(model, settings).afs
    with pytest.raises(UserError, match="afs takes one mean for all data, and Shrinks's are of several sizes"):
        calibrate(model, replace(settings, afs=True))
    with pytest.raises(UserError, match=r"has a mean of \(4, 2\), and Shrinks takes data of several sizes"):
        check_fit(model, Plan("ddim-afs", (1.0,), ((1.0, 0.0), (0.0, 0.0, 1.0)), mean=((0.0, 0.0),) * 4))
    one_size = adapt(Shrinks(), ("length", 2), axes={"length": (4, 4, 4)})
    assert calibrate(one_size, settings).afs


def test_the_network_is_called_as_often_as_nfe_says(mixture: Denoiser) -> None:
    for solver in ("heun", "iia-edm", "spndm", "iia-dpmpp-2m", "euler"):
        settings = Settings(3, solver, fit_batch=8, heldout=8, fine_steps=2, afs=True, refine=int(solver == "euler"))
        plan = calibrate(mixture, settings)
        assert plan.solver == settings.sampler
        told: list[float] = []

        def denoise(x: torch.Tensor, sigma: float, told: list[float] = told) -> torch.Tensor:
            told.append(sigma)
            return torch.zeros_like(x)

        sample(denoise, torch.ones(1, *mixture.spec.shape).double(), plan)
        assert len(told) == plan.nfe == 3
        assert max(told) < mixture.spec.sigma_max
