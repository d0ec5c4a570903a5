"""A budget is kept, and what it leaves out is said; the paper's own settings are had by one name."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.budget import Budget, afford, within
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.command import main
from edge_sampler.calibration.fit import fit
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.task import task_of
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan
from tests.calibration.toys import of_classes
from tests.conftest import export, report_of, run_main


@pytest.mark.parametrize("budget", [1_000_000, 300_000, 100_000, 30_000, 10_000])
def test_a_fit_keeps_its_budget_and_uses_most_of_it(budget: int, mixture: Denoiser) -> None:
    asked = Settings(10, refine=3)
    allowed, left_out = within(mixture, asked, budget)
    spent = task_of(mixture, allowed).cost()
    assert 0.25 * budget < spent <= budget or allowed == asked
    assert bool(left_out) == (allowed != asked)
    told = ", ".join(left_out)
    assert ("refinement iterations" in told, "not refined" in told) == (0 < allowed.refine < 3, not allowed.refine)
    for name in ("fit_batch", "solver"):
        assert (str(getattr(allowed, name)) in " ".join(left_out).split()) == (
            getattr(allowed, name) != getattr(asked, name)
        )


def test_a_smaller_budget_never_buys_more(mixture: Denoiser) -> None:
    budgets = (10**7, 10**6, 3 * 10**5, 10**5, 5 * 10**4, 2 * 10**4, 10**4)
    bought = [within(mixture, Settings(8, refine=10), budget)[0] for budget in budgets]
    for more, less in pairwise(bought):
        assert less.fit_batch <= more.fit_batch
        assert less.refine <= more.refine
    assert bought[0] == Settings(8, refine=10)


def test_an_analytical_first_step_is_left_out_last() -> None:
    """Means of many classes take more than the rest of a small fit."""
    model, bought = of_classes(), list[bool]()
    smallest = Settings(4, "iia-ddim", "edm", "global", fit_batch=16, heldout=8)
    most, least = (task_of(model, replace(smallest, afs=afs)).cost() for afs in (True, False))
    for budget in (10**5, most, most - 1, least):
        allowed, left_out = within(model, Settings(4), budget)
        bought.append(task_of(model, allowed).afs)
        assert ("no analytical first step" in left_out) == (not bought[-1])
        assert task_of(model, allowed).cost() <= budget
    assert bought == [True, True, False, False]
    with pytest.raises(UserError, match=r"too small: the smallest fit, with .*no analytical first step, takes"):
        within(model, Settings(4), least - 1)
    with pytest.raises(UserError, match=r"too small: the smallest fit, with .*, not refined, takes"):
        within(model, Settings(4, afs=True), least)


def test_one_that_buys_nothing_says_what_the_least_takes(mixture: Denoiser) -> None:
    with pytest.raises(UserError, match=r"a budget of 50 evaluations is too small: .*16 of 64 noises.* takes [\d,]+"):
        within(mixture, Settings(10), 50)
    with pytest.raises(UserError, match=r"too small: the smallest fit takes [\d,]+$"):
        within(mixture, Settings(3, "iia-ddim", "edm", fit_batch=4, heldout=2), 5)


def test_guidance_counts_twice() -> None:
    model = models.load("edm-fashion-cond")
    budget = task_of(model, Settings(4)).cost()
    assert within(model, Settings(4), budget)[0] == Settings(4)
    assert within(conditioned(model, guidance=2.0), Settings(4), budget)[0] != Settings(4)


def test_budgets_are_evaluations_or_times(mixture: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sampler.calibration.budget.slower_evaluation", lambda *models: (0.01, 1000))
    assert Budget.read("20000").evaluations(mixture) == 20000
    bought = [Budget.read(text).evaluations(mixture) for text in ("30s", "30m", "1.5h")]
    assert bought == pytest.approx([3000, 180_000, 540_000], abs=1)
    assert [str(Budget.read(text)) for text in ("20000", "90s", "1.5h")] == ["20,000 evaluations", "90s", "1.5h"]
    for wrong in ("", "0", "-5", "ten", "1.5", "10d", "0m", "1e4", "9" * 400, "9" * 400 + "h"):
        with pytest.raises(UserError, match="expected evaluations, such as 20000"):
            Budget.read(wrong)


def test_what_is_left_out_is_told_before(mixture: Denoiser, capsys: pytest.CaptureFixture[str]) -> None:
    allowed = afford(mixture, Settings(2, "iia-ipndm"), Budget.read("9000"))
    told = capsys.readouterr().err
    assert told.startswith("budget of 9,000 evaluations: ")
    assert f"{allowed.fit_batch} of 128 noises" in told
    assert "the fit takes at most" in told
    assert report_of(calibrate(mixture, allowed)).evaluations <= 9000


def test_the_file_is_named_by_what_the_budget_bought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ("--fit-batch", "16", "--heldout", "8", "--cache", "cache", "--refine", "2", "--budget", "3900")
    run_main(main, "--model", "edm-digits", "--nfe", "3", "--solver", "iia-ddim", "--schedule", "edm", *few)
    (path,) = tmp_path.glob("*.json")
    plan = Plan.load(path)
    assert (path.name, plan.solver) == (f"edm-digits-{plan.solver}-nfe3.json", "iia-ddim")


def test_the_papers_settings(mixture: Denoiser) -> None:
    two, one = (Settings(9, solver).as_in_the_paper() for solver in ("iia-edm", "iia-ddim"))
    assert (two.fit_batch, one.fit_batch) == (200, 16)
    assert {(s.fine_steps, s.fit_target, s.ridge) for s in (two, one)} == {(3, "local", 0.0)}
    report = report_of(calibrate(mixture, Settings(5, "iia-ddim").as_in_the_paper()))
    fitted = [any(step.gamma) for step in report.steps]
    assert fitted == [False, True, True, True, False]
    with pytest.raises(UserError, match="one of its fitted solvers, such as iia-edm or iia-ddim, not auto"):
        Settings(5).as_in_the_paper()
    with pytest.raises(UserError, match="not heun"):
        Settings(5, "heun").as_in_the_paper()
    with pytest.raises(UserError, match="--paper sets fit-batch itself"):
        replace(Settings(5, "iia-ddim"), fit_batch=9).as_in_the_paper()


def test_the_paper_keeps_what_heldout_noises_reject() -> None:
    """Half of the images are to go where the others are not: ours drops such γ, the paper's fit does not."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheme = Scheme(find("iia-ddim"), [8.0, 4.0, 2.0, 1.0, 0.0], 4, 1)

    def denoise(state: torch.Tensor, sigma: float) -> torch.Tensor:
        return torch.tanh(state) / (1 + sigma)

    def target(step: int, state: torch.Tensor) -> torch.Tensor:
        sigma, below = scheme.sigmas[step : step + 2]
        base = state + (below - sigma) / sigma * (state - denoise(state, sigma))
        return torch.cat([base[:4] + 0.3 * denoise(state, sigma)[:4], base[4:] - 0.3 * denoise(state, sigma)[4:]])

    ours, papers = (
        [any(step.gamma) for step in fit(scheme, denoise, 8 * x, target, 4, 0.0, paper)[0]] for paper in (False, True)
    )
    assert ours == [False, False, False, False]
    assert papers == [False, True, True, False]


def test_a_budget_that_is_too_small_is_refused_before_the_graph_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sampler.export.command.export_graphs", lambda model: pytest.fail("it is drawn"))
    with pytest.raises(UserError, match="a budget of 10 evaluations is too small"):
        export("--model", "edm-digits", "--nfe", "4", "--budget", "10")
