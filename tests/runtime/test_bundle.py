"""A whole bundle, made once: what it holds, what the runtime does with it, and what it refuses."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from edge_sampler import runtime
from edge_sampler.export.save import save_checked
from edge_sampler.runtime.bench import BASELINE, EAGER, LIMIT, PACE, UNROLLED, Pace, alternate, bench
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command import main as runtime_main
from edge_sampler.runtime.compare import BASELINE as LOOP
from edge_sampler.runtime.compare import PYTORCH, compare, within
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import Sampler
from tests.bundles import remake_manifest
from tests.conftest import HAS_PYTORCH, export, run_main

ROOT = Path(__file__).parent.parent.parent


def test_it_holds_what_the_manifest_says(made: Path) -> None:
    bundle = Bundle.open(made)
    graphs, pictures = {"sampler.onnx", "denoiser.onnx"}, {"samples.png", "report.html"}
    files = {"plan.json", "reference.npz", "reference.json"} | graphs | pictures
    assert set(bundle.manifest["files"]) == files
    assert {path.name for path in made.iterdir()} == files | {"manifest.json"}
    for name in files:
        bundle.file(name)
    assert bundle.plan.nfe == bundle.manifest["nfe"] == 4
    assert bundle.plan.sha256 == bundle.manifest["plan_sha256"]
    assert bundle.plan.report
    assert bundle.plan.report.fingerprint == bundle.manifest["model"]["fingerprint"]
    assert bundle.manifest["model"]["licence"].startswith("Apache-2.0")
    assert not bundle.random_weights
    with Image.open(made / "samples.png") as picture:
        assert np.asarray(picture).std() > 30


def test_an_image_depends_on_its_seed_alone(made: Path) -> None:
    with runtime.load(made) as sampler:
        together = sampler.sample(range(10), batch=10)
        in_threes = sampler.sample(range(10), batch=3)
        backwards = sampler.sample(list(reversed(range(10))), batch=4)
    np.testing.assert_allclose(in_threes, together, atol=1e-5)
    np.testing.assert_allclose(backwards[::-1], together, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_files_may_be_links(copy: Path, made: Path, tmp_path: Path) -> None:
    """As caches of hubs keep them, each under a name of its own elsewhere; weights beside their graph as well."""
    for name in ("sampler.onnx", "denoiser.onnx"):
        graph = ir.load(copy / name)
        (copy / name).unlink()
        save_checked(graph, copy / name, inline_limit=1000)
    remake_manifest(copy)
    blobs, linked = tmp_path / "blobs", tmp_path / "linked"
    blobs.mkdir()
    linked.mkdir()
    for place, file in enumerate(sorted(copy.iterdir())):
        file.rename(blobs / str(place))
        (linked / file.name).symlink_to(blobs / str(place))
    assert (linked / "sampler.onnx.data").is_symlink()
    assert within(compare(Bundle.open(linked)), 1e-4)
    with runtime.load(linked) as sampler, runtime.load(made) as whole:
        np.testing.assert_allclose(sampler.sample([3]), whole.sample([3]), atol=1e-5)


def test_all_three_paths_agree(made: Path) -> None:
    found = compare(Bundle.open(made))
    assert {(d.first, d.second) for d in found} == {("onnxrt", LOOP), ("onnxrt", PYTORCH), (LOOP, PYTORCH)}
    assert {d.stage for d in found} == {"denoised 0", "denoised 1", "denoised 2", "denoised 3", "images"}
    assert within(found, 1e-4)
    assert not within(found, 0.0)
    assert {(d.first, d.second) for d in compare(Bundle.open(made), seeds=[7, 8])} == {("onnxrt", LOOP)}
    for folder in (made, str(made)):
        assert [d.stage for d in compare(folder)] == [d.stage for d in found]


def test_comparing_notices_another_plan(copy: Path) -> None:
    """The baseline loop runs plan.json: changed there, with its hash made right again, the paths must part."""
    path = copy / "plan.json"
    plan = json.loads(path.read_text())
    plan["table"][-1][-1] *= 1.01
    path.write_text(json.dumps(plan))
    remake_manifest(copy, lambda facts: facts.update(plan_sha256=Plan.load(path).sha256))
    assert not within(compare(Bundle.open(copy)), 1e-4)


def test_classes_and_uint8(conditional: Path) -> None:
    with runtime.load(conditional) as sampler:
        images = sampler.sample([0, 0, 0], class_labels=[1, 2, 3])
        assert images.dtype == np.uint8
        assert images.shape == (3, 16, 16, 3)
        assert (images[0] != images[1]).any()
        np.testing.assert_array_equal(sampler.sample([0], class_labels=1), images[:1])
        for labels, message in (
            (None, "class_labels is missing"),
            ([1, 2], "one or 3, one for each"),
            (10, "holds 10, which is out of range"),
            (-1, "holds -1"),  # nothing told this network what no class is
        ):
            with pytest.raises(UserError, match=message):
                sampler.sample([0, 1, 2], class_labels=labels)
    assert within(compare(Bundle.open(conditional)), 1e-4)


def test_seeds_out_of_range_are_refused(made: Path) -> None:
    with runtime.load(made) as sampler:
        for seeds, message in (
            ([-1], "seed -1"),
            ([2**63], "out of range"),
            ([], "at least one"),
            ([1.5], "whole numbers"),
        ):
            with pytest.raises(UserError, match=message):
                sampler.sample(seeds)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"unknown condition 'class_labels'.*takes no conditions"):
            sampler.sample([0], class_labels=1)
        with pytest.raises(UserError, match="batch is 0"):
            sampler.sample([0], batch=0)


@pytest.mark.parametrize("name", ["sampler.onnx", "denoiser.onnx", "plan.json", "reference.npz"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_files_are_never_read(name: str, damage: str, copy: Path) -> None:
    content = bytearray((copy / name).read_bytes())
    if damage == "missing":
        (copy / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        (copy / name).write_bytes(content if damage == "flipped" else content[:-1])
    with pytest.raises(UserError, match=name):
        compare(Bundle.open(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 99}', '{"schema": 1, "files": {}}'])
def test_damaged_manifests_are_refused(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest"):
        runtime.load(copy)


def test_a_bundle_of_a_later_version_says_so(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"schema": 4, "nfe": 4, "model": {"name": "edm-digits"}}')
    with pytest.raises(UserError, match=r"has schema 4; this version reads 3: a later version of edge-sampler made it"):
        Bundle.open(copy)
    (copy / "manifest.json").write_text('{"schema": 1, "nfe": 4, "model": {"name": "edm-digits"}}')
    with pytest.raises(UserError, match=r"python -m export --model edm-digits --nfe 4"):
        Bundle.open(copy)


def test_random_weights_never_pass_for_real_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dry"
    export("--model", "edm-digits", "--random-weights", "--nfe", "2", "--solver", "ddim", "--out", str(out))
    assert "RANDOM WEIGHTS" in capsys.readouterr().out
    assert Bundle.open(out).random_weights
    properties = onnx.load(out / "sampler.onnx").metadata_props
    assert {entry.key: entry.value for entry in properties}["random_weights"] == "True"
    with runtime.load(out):
        assert "random weights" in capsys.readouterr().err


def test_bench_times_every_path(made: Path) -> None:
    what, timings, left_out = bench(Bundle.open(made), batch=2, rounds=1)
    assert "CPUExecutionProvider" in what
    assert [timing.name for timing in timings] == [LIMIT, BASELINE, UNROLLED, *[EAGER] * HAS_PYTORCH]
    assert bool(left_out) == (not HAS_PYTORCH)
    for timing in timings:
        summary = timing.summary()
        latency = summary["latency"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]
        assert summary["throughput_images_per_second"] == pytest.approx(2 / latency["mean"])
        assert len(json.dumps(summary))
    assert timings[0].over_limit == 1


def test_unknown_backends_are_named(made: Path) -> None:
    nothing: list[list[str] | str] = [[], "onnxrt"]
    for none in nothing:
        with pytest.raises(UserError, match=r"backends are .*; they must be a list of names, at least one"):
            compare(made, backends=none)
    with pytest.raises(UserError, match=r"unknown backend 'cuda'; known: auto, .*onnxrt"):
        runtime.load(made, "cuda")


def test_lower_precision_may_err_three_times_what_was_measured(made: Path) -> None:
    bundle = Bundle.open(made)
    told: dict[str, Any] = {"fp16": {"relative_error": 0.01}}
    told |= {"int8": {"relative_error": 1.0, "of_same_plan": {"relative_error": 0.02}}}
    measured = Bundle(made, {**bundle.manifest, "precisions": told})
    assert measured.tolerance("fp16") == pytest.approx(0.03)
    assert measured.tolerance("int8") == pytest.approx(0.06)
    assert measured.tolerance() == 1e-4
    assert measured.rms_tolerance() == measured.rms_tolerance("fp16") == np.inf  # they do not tell
    told["int8"] = {"rms_error": 0.5, "of_same_plan": {"relative_error": 0.02, "rms_error": 0.004}}
    assert measured.rms_tolerance("int8") == pytest.approx(0.012)
    told["fp16"] = {"relative_error": 0.0, "rms_error": 0.0}  # it rounds nothing, and others add in another order
    assert (measured.tolerance("fp16"), measured.rms_tolerance("fp16")) == (1e-4, np.inf)


def test_paths_settle_and_warm_up_before_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of the library that ran before still spin, and its data fill the caches."""
    done: list[str] = []
    monkeypatch.setattr("time.sleep", lambda seconds: done.append(f"sleep {seconds}"))
    timed = alternate({name: partial(done.append, name) for name in "ab"}, 2, Pace(turn=1e-9))
    turn = [f"sleep {PACE.settle}", "a", "a", f"sleep {PACE.settle}", "b", "b"]
    assert done == turn * 2
    assert PACE.settle > 0
    assert [len(rounds) for rounds in timed.values()] == [2, 2]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_an_error(
    wrong: float, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((1, 1, 8, 8), np.float32)
    images[0, 0, 1, 1] = wrong
    monkeypatch.setattr(Sampler, "sample", lambda *_, **__: images)
    with pytest.raises(BoundError, match="the images hold NaN or infinity"):
        run_main(runtime_main, "sample", str(made), "--seeds", "0", "--out", str(tmp_path / "a.png"))
    assert not list(tmp_path.iterdir())
