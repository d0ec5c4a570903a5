"""The analytical first step: the mean is the mean, and the evaluation that it saves makes images better."""

from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.task import task_of
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import adapt
from edge_sampler.models.progress import silent
from edge_sampler.runtime.condition import Condition
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


def test_auto_uses_it_where_one_mean_serves_every_image() -> None:
    """That of all classes does once the sampler is refined; what other conditions say has none."""
    several, plain = of_classes(), Settings(2, schedule="edm", fit_batch=8, heldout=4)
    models = {"class": several, "one class": conditioned(several, 1), "pairs": of_pairs()}
    refined, least = replace(plain, refine=1), replace(plain, schedule=None, refine=0)
    assert {name: task_of(model, plain).afs for name, model in models.items()} == {
        "class": False, "one class": True, "pairs": False
    }  # fmt: skip
    for settings in (refined, least):
        assert task_of(several, settings).afs
        assert not task_of(models["pairs"], settings).afs
    assert not task_of(several, replace(least, afs=False)).afs
    assert not task_of(several, replace(refined, solver="iia-ddim")).afs
    assert not task_of(large(several), least).afs  # too large to be refined by itself
    assert [calibrate(several, one).afs for one in (plain, least, replace(plain, afs=True))] == [False, True, True]


def of_pairs() -> Denoiser:
    """Told two of five kinds, whose pairs are more than fits may see."""
    conditions = {"kinds": Condition((2,), "int64", choices=5)}
    return adapt(Shrinks(), (1, 8, 8), conditions=conditions, sigma_min=0.01, sigma_max=10.0)


def large(model: Denoiser) -> Denoiser:
    """One whose samples are so large that their derivatives are beyond what a refinement may hold."""
    model = copy(model)
    model.spec = replace(model.spec, inputs=replace(model.spec.inputs, shape=(3, 1024, 1024)))
    return model


class Shrinks(torch.nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, kinds: torch.Tensor | None = None) -> torch.Tensor:
        return x.tanh() if kinds is None else (x + kinds.sum(1).view(-1, 1, 1, 1)).tanh()


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
