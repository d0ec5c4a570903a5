"""What a fit prints of itself."""

import pytest

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.report import figure, show
from edge_sampler.calibration.settings import AUTO, REFINED, Settings
from edge_sampler.models.denoiser import Denoiser
from tests.conftest import report_of


def test_no_error_looks_like_none() -> None:
    assert [figure(error) for error in (0.2, 0.01074, 0.001, 0.00052, 7.63e-6)] == [
        "0.2000",
        "0.0107",
        "0.0010",
        "5.2e-04",
        "7.6e-06",
    ]


@pytest.mark.parametrize(("error", "told"), [("mean", "mean"), ("rms", "RMS")])
def test_the_error_that_was_lowered_is_named(
    error: str, told: str, mixture: Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = calibrate(mixture, Settings(2, "ddim", fit_batch=8, heldout=4, refine=1, refine_error=error))
    show(plan)
    assert f"refinement, {told} error held out: 0." in capsys.readouterr().out
    report = report_of(plan)
    assert (min(report.refinement) == pytest.approx(report.heldout_rms_error, rel=1e-6)) == (error == "rms")


@pytest.mark.parametrize("refine", [0, 1])
def test_the_solver_that_won_a_race_is_marked(
    refine: int, mixture: Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = calibrate(mixture, Settings(3, schedule="edm", fit_batch=8, heldout=4, refine=refine))
    show(plan)
    shown = capsys.readouterr().out.splitlines()
    (taken,) = [line for line in shown if "<- taken" in line]
    assert plan.solver.removesuffix(REFINED) in taken
    assert sum(any(name in line and "0." in line for name in AUTO) for line in shown) == len(AUTO)
