"""What is said of a fit before it holds of the fit."""

import time

import pytest
from torch import Tensor

from edge_sampler import models
from edge_sampler.calibration.budget import Budget
from edge_sampler.calibration.calibrate import calibrate, refit
from edge_sampler.calibration.forecast import (
    TOO_LONG,
    Forecast,
    announce,
    announce_refit,
    forecast,
    forecast_refit,
)
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.task import task_of
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.mapped import size_of
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.backends.base import resident_memory
from tests.calibration.toys import of_classes
from tests.conftest import report_of
from tests.export.test_encoders import ROWS, behind

SMALL = {"fit_batch": 4, "heldout": 2, "fine_steps": 4}


@pytest.mark.parametrize(
    "settings",
    [
        Settings(2, "iia-ipndm", **SMALL),  # type: ignore[arg-type]
        Settings(2, "iia-ddim", afs=True, **SMALL),  # type: ignore[arg-type]  # a step more than evaluations
        Settings(3, "iia-edm", **SMALL),  # type: ignore[arg-type]  # whose steps take two
        Settings(3, "heun", afs=True, refine=1, **SMALL),  # type: ignore[arg-type]
        Settings(2, "iia-ddim", schedule="chosen", fit_target="global", **SMALL),  # type: ignore[arg-type]
    ],
    ids=lambda settings: settings.solver,
)
def test_a_fit_takes_hardly_less_than_is_said_and_never_more(settings: Settings, mixture: Denoiser) -> None:
    before, said = resident_memory(), forecast(mixture, settings)
    assert said is not None
    taken = report_of(calibrate(mixture, settings)).evaluations
    least = 0.7 if settings.schedule == "chosen" else 0.9  # where 48 levels are enough, and moves lead nowhere
    assert least * said.evaluations <= taken <= said.evaluations
    assert said.seconds > 0
    assert said.memory > before > size_of(mixture)


@pytest.mark.parametrize("noises", [4, 20])  # fewer than a mean takes, and more
def test_means_of_classes_are_counted(noises: int) -> None:
    model, settings = of_classes(), Settings(2, "ddim", "edm", fit_batch=noises, heldout=2, afs=True)
    assert report_of(calibrate(model, settings)).evaluations == task_of(model, settings).cost()


def test_a_guided_evaluation_counts_as_its_branches() -> None:
    settings, model = Settings(2, "iia-ddim", **SMALL), models.load("edm-fashion-cond")  # type: ignore[arg-type]
    one, two = forecast(model, settings), forecast(conditioned(model, guidance=2.0), settings)
    assert one is not None
    assert two is not None
    assert two.evaluations == 2 * one.evaluations


class Slow(Wrapped):
    """The same answers, later."""

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        time.sleep(0.002 * len(x))
        answers: Tensor = self.model(x, sigma, **conditions)
        return answers


def test_the_slower_of_two_models_is_told(mixture: Denoiser) -> None:
    """Whether it is the one that is fitted, or the one that the fit aims at. A time buys so much less."""
    settings, slow = Settings(2, "iia-ddim", **SMALL), Slow(mixture)  # type: ignore[arg-type]
    for models_of_fit in ((slow, mixture), (mixture, slow)):
        told = forecast(models_of_fit[0], settings, models_of_fit[1])
        assert told is not None
        assert told.seconds > 1e-3 * told.evaluations
        assert Budget.read("10s").evaluations(*models_of_fit) < 10_000


def test_a_model_that_is_aimed_at_needs_no_examples() -> None:
    """It is given what the other one is."""
    model, teacher = (behind(None, examples) for examples in ({"hint": ROWS, "mask": ROWS > 0}, None))
    assert forecast(model, Settings(2, "iia-ddim", **SMALL), teacher) is not None  # type: ignore[arg-type]


def test_only_long_fits_are_announced(mixture: Denoiser, capsys: pytest.CaptureFixture[str]) -> None:
    assert forecast(mixture, Settings(4, "ddim")) is None  # a fixed solver asks the network nothing
    announce(mixture, Settings(4, "ddim"))
    announce(mixture, Settings(2, "iia-ipndm", **SMALL))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    announce(mixture, Settings(2, "iia-ipndm", **SMALL), longer=0.0)  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("the fit takes at most ")


class Another(Wrapped):
    """The same answers by another name."""

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        answers: Tensor = self.model(x, sigma, **conditions)
        return answers


def test_a_refit_takes_hardly_less_than_is_said_and_never_more(
    mixture: Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(4, "iia-ipndm", refine=2, **SMALL)  # type: ignore[arg-type]
    plan = calibrate(mixture, Settings(4, "heun"))  # from which each iteration gains much, so that all are made
    others = [Another(mixture, architecture=str(place)) for place in range(4)]
    said = forecast_refit(mixture, others, plan, settings)
    taken = report_of(refit(mixture, others, plan, settings)).evaluations
    assert 0.9 * said.evaluations <= taken <= said.evaluations
    assert said.memory > (1 + 4) * size_of(mixture)
    announce_refit(mixture, others, plan, settings)
    assert capsys.readouterr().err.startswith(f"the refit takes at most {said.evaluations:,} evaluations of one sample")


def test_a_gpu_is_advised_where_a_cpu_takes_too_long() -> None:
    assert "--device cuda" in str(Forecast(1000, 1.1 * TOO_LONG, 10**9, "cpu"))
    assert "--device cuda" not in str(Forecast(1000, 0.9 * TOO_LONG, 10**9, "cpu"))
    assert "--device cuda" not in str(Forecast(1000, 1.1 * TOO_LONG, 10**9, "cuda"))


def test_a_minute_is_one() -> None:
    told = [str(Forecast(1000, seconds, 10**9, "cuda")) for seconds in (59.0, 61.0)]
    assert "up to 1 minute and" in told[0]
    assert "up to 2 minutes and" in told[1]
