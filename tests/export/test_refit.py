"""--refit: evaluations of a quantised sampler as functions, the plan that is refined over them, and where it goes."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.calibration.evaluate import network
from edge_sampler.calibration.settings import Settings
from edge_sampler.export import refitted
from edge_sampler.export.assemble import export_bundle
from edge_sampler.export.command import main as export_main
from edge_sampler.export.evaluations import quantised_evaluations
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantise import layers_of, quantise
from edge_sampler.export.quantised import feed_to_fit, ranges_of, write_sampler
from edge_sampler.export.report_page import REPORT
from edge_sampler.export.save import save_checked
from edge_sampler.models.onnx_denoiser import of_bundle
from edge_sampler.runtime.__main__ import main as runtime_main
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import BASELINE, PYTORCH, compare, denoised_name, run_baseline, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import facts_of
from edge_sampler.runtime.plan import weighted_sum
from edge_sampler.runtime.sampler import feed_of, load
from tests.bundles import remake_manifest
from tests.conftest import run_main
from tests.export.networks import euler, frames
from tests.export.test_quantise import add


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemm and MatMul, conditions, axes with names, an encoder and a decoder. Do not change it."""
    folder = tmp_path_factory.mktemp("staged") / "b"
    export_bundle(frames(stages=True), euler([0.9, 0.5, 0.2]), folder)
    return folder


@dataclass(frozen=True)
class Refit:
    """The bundle of digits with int8, refitted on few noises: not to be changed. What that took, and what it kept."""

    bundle: Path
    cache: Path
    samples_denoised: int


@pytest.fixture(scope="module")
def refit(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Refit:
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("refit") / "digits"))
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        few(patch, cache)
        denoised = counted(patch)
        add(folder, "--precision", "int8", "--refit")
    return Refit(folder, cache, sum(denoised))


@pytest.fixture
def refit_bundle(refit: Refit) -> Path:
    return refit.bundle


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each call of a network denoises from now on."""
    sizes, denoise = list[int](), network.denoise
    patch.setattr(network, "denoise", lambda *told: sizes.append(len(told[1])) or denoise(*told))  # type: ignore[func-returns-value]
    return sizes


@cache
def largest_of(folder: Path, precision: str) -> Mapping[str, float]:
    """What the bundle's layers are quantised by."""
    bundle = Bundle.open(folder)
    return ranges_of(bundle, precision, layers_of(ir.load(bundle.graph("sampler.onnx")).graph), one_scale=False)[0]


def few(patch: pytest.MonkeyPatch, cache: Path) -> None:
    """A refit of seconds."""
    patch.setenv("EDGE_SAMPLER_CACHE", str(cache))
    like = Settings(nfe=1, fit_batch=12, heldout=12, reference_steps=24, refine=1)
    patch.setattr(refitted, "refitted", partial(refitted.refitted, like=like))


@pytest.mark.parametrize(
    ("bundle_of", "precision"), [("made", "int8"), ("made", "fp8"), ("conditional", "int8"), ("staged", "int8+fp16")]
)
def test_a_function_is_its_evaluation_in_the_unrolled_graph(
    bundle_of: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """To the bit where no kernel is fused: in one that is, a sum in another order makes roundings fall another way."""
    bundle, eight = Bundle.open(request.getfixturevalue(bundle_of)), replace(QUANTISED[precision], rest="fp32")
    model, graph = of_bundle(bundle), ir.load(bundle.graph("sampler.onnx"))
    largest = largest_of(bundle.folder, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(QUANTISED, precision, eight)
        quantise(graph, precision, largest)
    drop_unused(graph.graph)
    save_checked(graph, tmp_path / "whole.onnx")
    functions = quantised_evaluations(bundle, model, eight, largest, tmp_path)
    assert len(functions) == bundle.plan.nfe == len({one.spec.fingerprint for one in functions})
    feed = feed_to_fit(bundle, 256)
    states, answered = [f"x_{k}" for k in range(len(functions))], list(map(denoised_name, range(len(functions))))
    with Session(tmp_path / "whole.onnx", [*states, *answered], optimise=False) as session:
        whole = session.run(feed)
    raw = {name: value for name, value in feed.items() if name != "noise"}
    conditions = {name: value.numpy() for name, value in model.encode(raw).items()}
    for evaluation, (sigma, state) in enumerate(zip(bundle.plan.sigmas, states, strict=True)):
        given, answers = {"x": whole[state], "sigma": np.array(sigma, np.float32), **conditions}, []
        for function in (evaluation, (evaluation + 1) % bundle.plan.nfe):
            with Session(tmp_path / f"evaluation-{function}.onnx", optimise=False) as session:
                answers.append(session.run(given)["denoised"])
        expected = whole[denoised_name(evaluation)]
        np.testing.assert_allclose(answers[0], expected, atol=2e-6 * np.abs(expected).max())
        assert np.abs(answers[1] - expected).max() > 1e-4 * np.abs(expected).max()  # with another one's scales


@pytest.mark.parametrize("bundle_of", ["made", "conditional", "staged"])
def test_a_sampler_with_the_bundles_own_plan_is_the_bundles_own(
    bundle_of: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Bundle.open(request.getfixturevalue(bundle_of))
    write_sampler(bundle, bundle.plan, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == bundle.graph("sampler.onnx").read_bytes()


def test_the_quantised_graph_has_a_plan_of_its_own(refit_bundle: Path, made: Path) -> None:
    bundle = Bundle.open(refit_bundle)
    recorded, plan = bundle.manifest["precisions"]["int8"], bundle.plan_of("int8")
    assert (refit_bundle / "plan.json").read_bytes() == (made / "plan.json").read_bytes()
    assert bundle.plan_of("fp32") == bundle.plan_of(None) == bundle.plan != plan
    assert plan.sha256 == recorded["plan_sha256"]
    assert ir.load(bundle.graph("sampler-int8.onnx")).metadata_props["plan_sha256"] == plan.sha256
    assert plan.report
    assert plan.report.fingerprint == bundle.manifest["model"]["fingerprint"]
    assert plan.report.refinement[1] < 0.97 * plan.report.refinement[0]
    feed, names = feed_of(bundle, range(8), {}), [f"x_{plan.nfe - 1}", *map(denoised_name, range(plan.nfe))]
    with Session(bundle.graph("sampler-int8.onnx"), names) as session:
        found = session.run(feed)
    terms = [feed["noise"], *(found[denoised_name(k)] for k in range(plan.nfe))]
    for row, value in ((plan.table[-1], found["images"]), (plan.table[-2], found[names[0]])):
        np.testing.assert_allclose(value, weighted_sum(row, terms[: len(row)]), atol=1e-5 * np.abs(terms[0]).max() * 80)


def test_parity_is_with_the_loop_of_the_same_plan(refit_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, open_graph = Bundle.open(refit_bundle), BACKENDS["onnxrt"].open_graph
    found = compare(bundle, backends=["onnxrt"], precision="int8")
    assert within(found, None)
    assert {(one.first, one.second) for one in found} == {("onnxrt", BASELINE)}  # PyTorch ran plan.json
    assert open_graph
    feed = feed_of(bundle, bundle.reference()["seeds"].tolist(), {})
    with Session(bundle.graph("sampler-int8.onnx")) as session:
        images = session.run(feed)["images"]
    right, wrong = (
        float(np.square(run_baseline(bundle, feed, open_graph, plan).made - images).mean())
        for plan in (bundle.plan_of("int8"), bundle.plan)
    )
    assert found[-1].rms == pytest.approx(right**0.5, rel=1e-4)
    assert right < 0.8 * wrong
    recorded = bundle.manifest["precisions"]["int8"]
    assert bundle.tolerance("int8") == 3 * recorded["of_same_plan"]["relative_error"]
    assert recorded["rms_error"] > recorded["of_same_plan"]["rms_error"]  # against plan.json's images
    assert PYTORCH in {one.second for one in compare(bundle, backends=["onnxrt"])}

    cpu = BACKENDS["onnxrt"]
    monkeypatch.setitem(
        BACKENDS, "engine", replace(cpu, name="engine", open=lambda of, _, names: cpu.open(of, "int8", names))
    )
    with pytest.raises(UserError, match=r"onnxrt and engine run precisions with different plans.*name a --precision"):
        compare(bundle, backends=["onnxrt", "engine"])
    monkeypatch.setitem(BACKENDS, "engine", replace(BACKENDS["engine"], open_graph=None))
    monkeypatch.setattr(Bundle, "inner_output", "images")
    with pytest.raises(UserError, match=r"recorded output is of plan\.json, before the refit"):
        compare(bundle, backends=["engine"])


def test_inspect_shows_both_plans(refit_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(refit_bundle)
    run_main(runtime_main, "inspect", str(refit_bundle))
    shown = capsys.readouterr().out
    for plan, what in ((bundle.plan, "plan: "), (bundle.plan_of("int8"), "plan of int8, refitted: ")):
        (line,) = (line for line in shown.splitlines() if line.startswith(what))
        assert line.endswith(plan.sha256)
    assert "plan-int8.json  verified" in shown


def test_another_plan_under_that_name_is_refused(refit_bundle: Path, tmp_path: Path) -> None:
    """Also where the manifest lists the file that is there."""
    folder = Path(shutil.copytree(refit_bundle, tmp_path / "b"))
    shutil.copyfile(folder / "plan.json", folder / "plan-int8.json")
    with pytest.raises(UserError, match=r"plan-int8\.json is not the file the manifest describes"):
        Bundle.open(folder).plan_of("int8")
    remake_manifest(folder)
    with pytest.raises(UserError, match=r"plan-int8\.json is not the plan of sampler-int8\.onnx"):
        compare(Bundle.open(folder), backends=["onnxrt"], precision="int8")


def test_a_graph_that_is_there_is_taken_with_the_same_options_alone(
    refit_bundle: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an engine of it is built without another refit, and without PyTorch."""
    monkeypatch.setitem(sys.modules, "edge_sampler.export.refitted", None)
    before = Bundle.open(refit_bundle).manifest
    add(refit_bundle, "--precision", "int8", "--refit")
    after = Bundle.open(refit_bundle).manifest
    assert facts_of(after) == facts_of(before)
    files = [{name: one for name, one in told["files"].items() if name != REPORT} for told in (before, after)]
    assert files[0] == files[1]
    with pytest.raises(UserError, match=r"holds sampler-int8\.onnx already, refitted: add --refit"):
        add(refit_bundle, "--precision", "int8")
    with pytest.raises(UserError, match=r"--refit fits with PyTorch, and .* is not installed"):
        add(copy, "--precision", "int8", "--refit")
    shutil.copyfile(copy / "sampler.onnx", copy / "sampler-int8.onnx")
    told = Bundle.open(refit_bundle).manifest["precisions"]["int8"]
    not_refitted = {name: value for name, value in told.items() if name != "plan_sha256"}
    remake_manifest(copy, lambda facts: facts.update(precisions={"int8": not_refitted}))
    with pytest.raises(UserError, match=r"already, with a plan that is not refitted: take another bundle"):
        add(copy, "--precision", "int8", "--refit")


def test_an_export_refits_with_its_own_model_and_says_first_what_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few(monkeypatch, tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "200")
    models, views = [], []

    def recorded(model: object, *arguments: object, like: Settings) -> object:
        models.append(model)
        views.append(like.refine_on)
        return refitted.refitted(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("edge_sampler.export.command.refitted", recorded)
    command = ("--model", "edm-digits", "--nfe", "2", "--solver", "ddim", "--check", "0", "--temperature", "0.9")
    refined = ("--refine", "1", "--refine-on", "features", "--fit-batch", "8", "--heldout", "8")
    run_main(export_main, *command, *refined, "--out", str(tmp_path / "b"), "--precision", "int8", "--refit")
    shown = capsys.readouterr()
    assert shown.err.index("the refit takes at most ") < shown.err.rindex("refinement 1 of up to 1")
    assert "refitted: geometric mean of errors against the converged solution" in " ".join(shown.out.split())
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.plan_of("int8").report is not None
    assert models[0].spec.fingerprint == bundle.manifest["model"]["fingerprint"]  # type: ignore[attr-defined]
    assert views == ["features"]
    assert bundle.temperature == 0.9  # of PyTorch's record too, and of whatever runs it
    stored = bundle.reference()
    with load(bundle.folder, "onnxrt", "fp32") as sampler:
        seeds = stored["seeds"].tolist()
        np.testing.assert_allclose(sampler.sample(seeds), stored["made"], atol=1e-4)
        assert np.abs(sampler.sample(seeds, temperature=1) - stored["made"]).max() > 0.01


def test_a_killed_refit_is_taken_up(refit: Refit, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that it asks of networks is kept, by what it is asked of."""
    few(monkeypatch, refit.cache)
    denoised = counted(monkeypatch)
    again = refitted.refit_of(Bundle.open(made))(Bundle.open(made), "int8", largest_of(made, "int8"))
    first = Bundle.open(refit.bundle).plan_of("int8")
    assert again.sha256 == first.sha256
    assert sum(denoised) < 0.1 * refit.samples_denoised
    assert first.report is not None
    assert again.report is not None
    assert again.report == replace(first.report, seconds=again.report.seconds)


def test_mistakes_are_named(copy: Path, staged: Path, tmp_path: Path) -> None:
    before = sorted(path.name for path in copy.iterdir())
    for precision in ("fp32", "fp16"):
        with pytest.raises(UserError, match="refit is for fp8, int8, int8"):
            add(copy, "--precision", precision, "--refit")
    assert sorted(path.name for path in copy.iterdir()) == before
    with pytest.raises(UserError, match="--refit asks for examples of words, mask, and a bundle holds too few"):
        add(Path(shutil.copytree(staged, tmp_path / "s")), "--precision", "int8", "--refit")
    command = ("--model", "edm-digits", "--nfe", "2", "--precision", "int8", "--refit", "--towards", "edm-fashion")
    with pytest.raises(UserError, match="--refit aims at the model's own images, and --towards at another's"):
        run_main(export_main, *command)
    with pytest.raises(UserError, match="--check asks for the model's own images, and --towards aims at another's"):
        run_main(export_main, *command[:4], "--towards", "edm-fashion", "--check", "8")
