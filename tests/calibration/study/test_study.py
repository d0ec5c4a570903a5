"""The study measures what it says, and writes what it found."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.afs import mean_images
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_fit, to_judge
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import image_errors
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.settings import AUTO, Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.study import ablation_command, frechet, report
from edge_sampler.calibration.study import command as study_command
from edge_sampler.calibration.study.measure import Row, averages, converged, judging, reference
from edge_sampler.calibration.study.rivals.bns import bns
from edge_sampler.calibration.study.rivals.entry import BEST_FIXED, RIVAL, Rival
from edge_sampler.calibration.study.rivals.fixed import best_fixed
from edge_sampler.calibration.study.rivals.gits import gits
from edge_sampler.calibration.study.study import SOLVED, Study, prepared
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks import classifier
from edge_sampler.models.progress import silent
from edge_sampler.models.shipped import shipped_plan
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.calibration.toys import MIXTURE
from tests.conftest import report_of, run_main

SMALL = [
    "--nfe",
    "3,4",
    "--refined",
    "3",
    "--noises",
    "24",
    "--fit-batch",
    "32",
    "--heldout",
    "16",
    "--iterations",
    "3",
]
SMALL += ["--rivals", "best-fixed,gits,bns"]


# Those that a test can wait for.
FEW_RIVALS = (
    Rival("best-fixed", BEST_FIXED, best_fixed),
    Rival("gits", RIVAL, partial(gits, fine=12)),
    Rival("bns", RIVAL, partial(bns, iterations=12, judged_every=4)),
)
of_few_rivals = partial(study_command.main, FEW_RIVALS)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    out = folder / "out"
    run_main(of_few_rivals, "--model", MIXTURE, *SMALL, "--cache", str(folder / "cache"), "--out", str(out))
    return out


def test_the_figures_are_those_of_the_plans_and_all_is_written(found: Path, mixture: Denoiser) -> None:
    rows = json.loads((found / "study.json").read_text())["rows"]
    assert {(row["kind"], row["nfe"]) for row in rows} == {
        *((kind, nfe) for kind in (BEST_FIXED, *SOLVED[:-1]) for nfe in (3, 4)), (RIVAL, 3), ("refined", 3),
    }  # fmt: skip
    refined = next(row for row in rows if row["kind"] == "refined")
    plan = Plan.load(found / "plans" / "refined-nfe3.json")
    assert plan.sha256 == refined["plan_sha256"]
    assert error_against_converged(mixture, plan, 24) == pytest.approx(refined["rmse"], rel=0.02)
    assert all(row["low"] <= row["rmse"] <= row["high"] for row in rows)
    assert all(row["trimmed"] == pytest.approx(row["rmse"]) for row in rows)  # of 24 images none is a hundredth
    fixed, fitted, _, chosen, afs, refined = (
        min(row["median"] for row in rows if row["kind"] == kind and row["nfe"] == 3) for kind in SOLVED
    )  # a few images lie between two of the mixture's; they would decide an RMSE
    assert refined < min(afs, chosen) < max(afs, chosen) < fitted < fixed
    names = {path.name for path in found.iterdir()}
    assert names == {"study.json", "study.md", "plans", "error.png", "gamma.png", "steps.png", "samples.png"}
    table = (found / "study.md").read_text()
    assert "| refined |" in table
    assert "FD-fashion" not in table  # numbers have no features


def test_a_hundredth_of_the_images_is_left_out_the_worst() -> None:
    errors = np.array([4.0] * 150 + [9.0] * 48 + [1e6, 1e8])
    rmse, trimmed, median = averages(np.random.default_rng(0).permutation(errors))
    assert (rmse, trimmed, median) == pytest.approx((errors.mean() ** 0.5, errors[:198].mean() ** 0.5, 2.0))
    assert averages(errors[-99:])[:2] == pytest.approx((errors[-99:].mean() ** 0.5,) * 2)  # none is a hundredth


def test_ratios_are_to_the_best_fixed_solver_and_to_the_best_rival(found: Path) -> None:
    rows = json.loads((found / "study.json").read_text())["rows"]
    errors = {(row["solver"], row["nfe"]): row["rmse"] for row in rows}
    lines = (found / "study.md").read_text().splitlines()

    def cells(heading: str, kind: str) -> list[str]:
        first = next(place for place, line in enumerate(lines) if line.startswith(heading))
        line = next(line for line in lines[first:] if line.startswith(f"| {kind} |"))
        return [cell.strip() for cell in line.split("|")[2:-1]]

    best = {nfe: errors["best-fixed", nfe] for nfe in (3, 4)}
    rival = min(errors[name, 3] for name in ("best-fixed", "gits", "bns"))
    assert cells("By RMS error, the best of a kind to", "refined") == [f"{errors['refined', 3] / best[3]:.2f}", ""]
    fixed = [min(row["rmse"] for row in rows if (row["kind"], row["nfe"]) == ("fixed", nfe)) for nfe in (3, 4)]
    expected = [f"{error / best[nfe]:.2f}" for nfe, error in zip((3, 4), fixed, strict=True)]
    assert cells("By RMS error, the best of a kind to", "fixed") == expected
    assert cells("By RMS error, to the best of what others", "refined")[0] == f"{errors['refined', 3] / rival:.2f}"
    for row in rows:
        if row["kind"] in (BEST_FIXED, RIVAL):
            at = [3, 4].index(row["nfe"])
            assert cells("What a fit alone costs", row["solver"])[at].startswith(f"{row['evaluations']:,}, ")
            assert row["evaluations"] > 24 * 48  # the converged images alone


def test_the_best_rival_may_be_of_any_kind(found: Path) -> None:
    plan = Plan.load(found / "plans" / "refined-nfe3.json")
    errors = {("best-fixed", BEST_FIXED): 0.3, ("gits", RIVAL): 0.4, ("bns", RIVAL): 0.2, ("refined", "refined"): 0.1}
    rows = [Row(name, kind, 3, error, 0, 1, error, -error, None, plan) for (name, kind), error in errors.items()]
    measured = Study("", Settings(3), 1, 0.0, 0, None, tuple(rows), {}, ())
    assert [measured.rival(3, measure) for measure in ("rmse", "median")] == [rows[2], rows[1]]
    assert replace(measured, rows=tuple(rows[:2])).rival(3) == rows[0]
    assert measured.rival(4) is None
    for shown, told in ((rows, True), (rows[1:], False), (rows[:1], False)):  # to what was not measured, or alone
        page = report.markdown(replace(measured, rows=tuple(shown)))
        assert ("to the best fixed solver on its best levels" in page) == told


def test_of_rivals_alone(tmp_path: Path) -> None:
    few = ["--nfe", "2,3", "--refined", "3", "--noises", "4", "--fit-batch", "8", "--heldout", "4", "--solvers", "none"]
    few += ["--cache", str(tmp_path / "cache"), "--model", MIXTURE]
    run_main(of_few_rivals, *few, "--rivals", "gits,best-fixed", "--out", str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
    assert [(row["solver"], row["nfe"]) for row in rows] == [("best-fixed", 2), ("best-fixed", 3), ("gits", 3)]
    with pytest.raises(UserError, match="solvers are none"):
        run_main(of_few_rivals, *few, "--rivals", "none", "--out", str(tmp_path / "no"))
    with pytest.raises(UserError, match="at the NFE of --refined"):
        run_main(of_few_rivals, *few, "--rivals", "bns", "--iterations", "0", "--out", str(tmp_path / "no"))


def test_of_plans_that_somebody_has(tmp_path: Path, mixture: Denoiser) -> None:
    """Each by its file's name, at its number of evaluations, beside what it cost."""
    plan = calibrate(mixture, Settings(3, "iia-ddim", fit_batch=8, heldout=4))
    first, second, other = (tmp_path / name / "mine.json" for name in ("a", "b", "c"))
    for path, one in (
        (first, plan),
        (second, plan),
        (other, replace(plan, report=replace(report_of(plan), fingerprint="0"))),
    ):
        path.parent.mkdir()
        one.save(path)
    few = ["--nfe", "2,3", "--noises", "8", "--solvers", "none", "--rivals", "none", "--model", MIXTURE]
    few += ["--cache", str(tmp_path / "cache")]
    run_main(study_command.main, *few, "--plans", str(first), "--out", str(tmp_path / "out"))
    (row,) = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
    judge = judging(mixture, 8, NO_CACHE, silent)
    assert row["rmse"] == pytest.approx(judge.row(plan, "given", ())[0].rmse)
    assert (row["solver"], row["nfe"], row["of"]) == ("mine.json", 3, "iia-ddim")
    assert row["evaluations"] == report_of(plan).evaluations
    assert f"| mine.json | {row['evaluations']:,} (iia-ddim) |" in (tmp_path / "out" / "study.md").read_text()
    for plans, asked, said in (
        (f"{first},{second}", "2,3", "two that are called mine.json, of 3 evaluations"),
        (str(other), "2,3", "the plan was fitted to"),
        (str(first), "2", "has 3 evaluations: add 3 to --nfe"),
        ("", "2,3", "--plans '' has an empty name"),
    ):
        with pytest.raises(UserError, match=said):
            run_main(study_command.main, *few, "--nfe", asked, "--plans", plans, "--out", str(tmp_path / "no"))


def test_of_plans_that_ship() -> None:
    model = models.load("edm-digits")
    found = study_command.plans_of("shipped", model, "edm-digits", [3, 5, 7])
    assert found == {("shipped", nfe): shipped_plan("edm-digits", nfe) for nfe in (3, 5)}
    with pytest.raises(UserError, match="no plan of 7 evaluations ships with edm-digits"):
        study_command.plans_of("shipped", model, "edm-digits", [7])


@pytest.mark.parametrize("main", [study_command.main, ablation_command.main])
@pytest.mark.parametrize("noises", [1, 2**20 + 1, 10**25])
def test_of_no_noises_and_of_more_than_anybody_waits_for(main: Callable[[], None], noises: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--noises is {noises}; it must be at least 2 and at most 1,048,576"):
        run_main(main, "--model", MIXTURE, "--nfe", "3", "--noises", str(noises), "--out", str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()


def test_of_named_solvers_alone(tmp_path: Path) -> None:
    few = ["--nfe", "3", "--noises", "4", "--fit-batch", "8", "--heldout", "4", "--iterations", "0"]
    few += ["--rivals", "none", "--cache", str(tmp_path / "cache")]
    out = tmp_path / "out"
    run_main(study_command.main, "--model", MIXTURE, *few, "--solvers", "heun,iia-edm, heun", "--out", str(out))
    rows = json.loads((out / "study.json").read_text())["rows"]
    assert [row["solver"] for row in rows] == ["heun", "iia-edm", "heun-chosen", "iia-edm-chosen"]
    assert "with AFS" not in (out / "study.md").read_text()  # no such row, where none was measured
    with pytest.raises(UserError, match="fitted ones with fixed ones"):
        run_main(study_command.main, "--model", MIXTURE, *few, "--solvers", "heun", "--out", str(tmp_path / "no"))
    assert not (tmp_path / "no").exists()
    assert {solver.name for solver in study_command.solvers_of("auto")} == {*AUTO}


def test_each_image_of_the_reference_takes_the_steps_that_it_needs(mixture: Denoiser, tmp_path: Path) -> None:
    noises, cache = to_judge(mixture, 8), Cache(tmp_path)
    solved = {steps: reference(noises, steps, cache, silent) for steps in (4, 8, 16, 32)}
    moves = {2 * steps: image_errors(solved[2 * steps] - solved[steps]) for steps in (4, 8, 16)}
    allowed = moves[8].median().item()
    images, moved = converged(noises, cache, silent, first=8, allowed=allowed, most=32)
    settled_at = {place: next((s for s in (8, 16) if moves[s][place] <= allowed), 32) for place in range(8)}
    assert len(set(settled_at.values())) > 1
    for place, steps in settled_at.items():
        assert torch.allclose(images[place], solved[steps][place], atol=1e-4)  # float32, in other batches
        assert moved[place].item() == pytest.approx(moves[steps][place].item(), abs=1e-4)


def test_what_another_reference_judged_is_not_taken_over(mixture: Denoiser, tmp_path: Path) -> None:
    plan = calibrate(mixture, Settings(3, "ddim"))

    def error(steps: int, cache: Cache) -> float:
        return judging(mixture, 4, cache, silent, steps, np.inf).row(plan, "fixed", ())[0].rmse

    assert error(8, Cache(tmp_path)) != error(16, Cache(tmp_path)) == error(16, NO_CACHE)


def test_a_reference_may_be_off_by_half_of_the_least_error(mixture: Denoiser) -> None:
    judge = replace(judging(mixture, 4, NO_CACHE, silent), moved=torch.full((4,), 0.003))
    judge.check(0.0021)
    with pytest.raises(UserError, match=r"moves by 0\.003 .* errors of 0\.0019"):
        judge.check(0.0019)


def test_frechet_distance() -> None:
    """Of Gaussians it is known in closed form, and 0 of a set from itself."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator)
    one = classifier.statistics(features)
    assert frechet.distance(one, one) == pytest.approx(0, abs=1e-6)
    moved = classifier.statistics(2 * features + 1)
    expected = (moved.mean - one.mean).square().sum().item() + np.trace(one.covariance.numpy())
    assert frechet.distance(one, moved) == pytest.approx(expected, rel=1e-6)


def test_precision_and_recall() -> None:
    """Of points on a line, where neighbours are counted by hand, and of sets that hold each other in part."""
    real, made = (torch.tensor(values)[:, None] for values in ([0.0, 1.0, 2.0, 3.0, 10.0], [1.5, 5.0, 10.5, 99.0]))
    # third nearest real ones are 3, 2, 2, 3 and 9 away: 5.0 is within 9 of 10, 10.5 too, 99 of none
    # third nearest made ones are 97.5, 94, 88.5 and 97.5 away, so that every real one is covered
    assert frechet.precision_and_recall(made, real) == (0.75, 1.0)
    generator = torch.Generator().manual_seed(0)
    cloud, far = torch.randn(1500, 4, generator=generator), torch.randn(1500, 4, generator=generator) + 100
    assert frechet.precision_and_recall(cloud, cloud) == (1.0, 1.0)
    assert frechet.precision_and_recall(cloud, far) == (0.0, 0.0)
    assert frechet.precision_and_recall(cloud, torch.cat([cloud, far])) == (1.0, 0.5)  # half of it is never made
    assert frechet.precision_and_recall(torch.cat([cloud, far]), cloud) == (0.5, 1.0)
    assert frechet.precision_and_recall(cloud[:2], cloud[:2]) == (1.0, 1.0)


def test_a_study_of_clothes_is_judged_by_a_classifier_that_no_fit_uses(tmp_path: Path) -> None:
    fashion = models.load("edm-fashion")
    plan, cache = calibrate(fashion, Settings(2, "ddim")), Cache(tmp_path)
    judge = judging(fashion, 8, cache, silent, 4, np.inf)
    row, _ = judge.row(plan, "fixed", ())
    images = sample(judge.noises.network, judge.noises.noise, plan)
    network, real, some = classifier.load_judge()
    seen = classifier.features(network, images)
    expected = frechet.distance(classifier.statistics(seen), real), *frechet.precision_and_recall(seen, some)
    assert (row.judged_fd, row.precision, row.recall) == pytest.approx(expected, rel=1e-4)
    assert row.fd != pytest.approx(row.judged_fd, rel=0.01)
    converged_seen = classifier.features(network, judge.goal)
    assert judge.reference_figures() == pytest.approx(
        (
            frechet.distance(classifier.statistics(converged_seen), real),
            *frechet.precision_and_recall(converged_seen, some),
        ),
        rel=1e-4,
    )
    assert judge.unseen is not None
    with torch.no_grad():
        judge.unseen.network.norm.weight.mul_(2)  # another judge: what this one has seen is not taken over
    assert judge.row(plan, "fixed", ())[0].judged_fd != pytest.approx(row.judged_fd, rel=0.01)
    assert some.shape == (classifier.KNOWN, 64)
    measured = Study("", Settings(2), 8, 0.0, 0, 1.0, (row,), {}, (), (1.25, 0.5, 0.25))
    table = report.markdown(measured)
    assert "(the converged images: 1.25; 0.50, 0.25):" in table
    assert f"| ddim | {row.judged_fd:.2f} ({row.precision:.2f}, {row.recall:.2f}) |" in table


def test_means_are_asked_for_only_where_a_solver_starts_from_them(
    mixture: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[bool]()

    def recorded(noises: Noises, *told: object) -> torch.Tensor:
        asked.append(True)
        return mean_images(noises, NO_CACHE)

    monkeypatch.setattr("edge_sampler.calibration.study.study.mean_images", recorded)
    noises, every = to_fit(mixture, 8, 4, 0), [Settings(4, fit_batch=8, heldout=4)]
    for names, mean in ((["heun", "ddim"], []), (["ddim", "iia-ddim"], [True])):
        prepared(noises, list(map(find, names)), every, NO_CACHE, silent)
        assert asked == mean


def test_the_classifier_sees_the_shipped_models_images() -> None:
    seer, real = classifier.load()
    noise = torch.rand(8, *classifier.SHAPE) * 2 - 1
    assert classifier.features(seer, noise).shape == (8, classifier.Classifier.FEATURES)
    assert torch.linalg.eigvalsh(real.covariance).min() > -1e-6
    assert models.load("edm-fashion", random_weights=True).spec.shape == classifier.SHAPE
