"""Bundles that no exporter made: what they tell, and how their files are held against it."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.verified import PIECE, WEIGHTS, describe_files, file_sha256, weights_beside
from tests.runtime.small_bundles import HINT, MEASURED, PLAN, REFITTED, bundle, inputs_of, reference

CLASSES: dict[str, Any] = {"shape": [], "dtype": "int64", "null": None, "choices": 3, "description": ""}
DECODING = {"stages": ["decoder"], "files": ["decoder.onnx"]}
TEXT = {**HINT, "dtype": "int64", "text": {"file": "t.json", "default": "", "follows": ""}}


def damage(folder: Path, **given: Any) -> str:
    with pytest.raises(UserError, match=r"manifest\.json is damaged: ") as raised:
        bundle(folder, **given)
    return str(raised.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inputs": inputs_of()}, "a sample's shape is empty"),
        ({"model": {"inputs": inputs_of()}}, "its noise is [2, 3], and that of its loop []"),
        ({"output": {"name": "samples", "shape": [0], "units": ""}}, "it makes [0] of [2, 3], without a decoder"),
        ({"output": {"name": "samples", "shape": [0], "units": ""}, **DECODING}, "a shape has the size 0"),
        ({"dtype": "uint8"}, r"samples [2, 3] are no pictures, and uint8"),
        ({"stages": ["decoder"]}, "it names decoder.onnx, which is not among its files"),
        ({"precisions": {"fp16": MEASURED}}, "it names sampler-fp16.onnx, which"),
        (
            {"stages": ["encoder"], "files": ["encoder.onnx"], "model": {"raw": {"prompt": HINT}}},
            "its encoder takes prompt, which the sampler is not given",
        ),
        ({"inputs": inputs_of(2, text=TEXT)}, "it names t.json, which"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert damage(tmp_path, **given).startswith(told)


def test_what_does_not_contradict_itself_opens(tmp_path: Path) -> None:
    found = bundle(
        tmp_path,
        inputs_of(3, 4, 4, hint=HINT, class_labels=CLASSES),
        files=("encoder.onnx", "sampler-fp16.onnx"),
        dtype="uint8",
        stages=["encoder"],
        precisions={"fp16": MEASURED},
        model={"raw": {"hint": HINT}, "random_weights": True},
    )
    assert (found.inner_output, found.dtype, found.random_weights) == ("images_float32", "uint8", True)
    assert found.makes == "samples: uint8 [4, 4, 3], 0 to 255"
    assert (found.graph_name(), found.graph_name("fp32"), found.graph_name("fp16")) == (
        "sampler.onnx",
        "sampler.onnx",
        "sampler-fp16.onnx",
    )
    assert found.engines == ()
    assert found.tolerance("fp16") == pytest.approx(0.3)
    assert found.rms_tolerance("fp16") == pytest.approx(0.03)
    assert (found.tolerance(), found.rms_tolerance()) == (1e-4, np.inf)


def test_a_precision_that_was_refitted_has_a_plan_of_its_own(tmp_path: Path) -> None:
    REFITTED.save(tmp_path / "plan-int8.json")
    told = {"int8": MEASURED | {"plan_sha256": REFITTED.sha256}, "fp16": MEASURED}
    found = bundle(tmp_path, files=("sampler-int8.onnx", "sampler-fp16.onnx"), precisions=told)
    assert found.plan == found.plan_of(None) == found.plan_of("fp32") == found.plan_of("fp16") == PLAN
    assert found.plan_of("int8") == REFITTED
    wrong = bundle(
        tmp_path,
        files=("sampler-int8.onnx", "sampler-fp16.onnx"),
        precisions={**told, "int8": MEASURED | {"plan_sha256": PLAN.sha256}},
    )
    with pytest.raises(UserError, match=r"plan-int8\.json is not the plan of sampler-int8\.onnx: export it again"):
        wrong.plan_of("int8")


def test_a_plans_mean_is_of_the_loops_shape(tmp_path: Path) -> None:
    mean = Plan("ddim", (1.0,), ((1.0, 0.0), (0.5, 0.5, 0.0)), mean=((0.0,) * 3,) * 2)
    assert bundle(tmp_path, plan=mean).plan == mean
    with pytest.raises(UserError, match=r"is damaged: its mean is \[2, 3\], of data \[3, 2\]"):
        _ = bundle(tmp_path, inputs_of(3, 2), plan=mean).plan


def test_the_reference_is_taken_as_pytorch_computed_it(tmp_path: Path) -> None:
    stored = reference(input_hint=np.arange(4, dtype=np.float32).reshape(2, 2))
    np.savez(tmp_path / "reference.npz", **stored)
    found = bundle(tmp_path, inputs_of(2, 3, hint=HINT)).reference()
    assert found.keys() == stored.keys()
    assert all((found[name] == stored[name]).all() for name in stored)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": np.array([1.0, 2.0])}, r"its seeds are float64 \[2\]"),
        ({"seeds": np.array([-1, 2])}, r"its seeds are int64 \[2\]"),
        ({"seeds": np.array([[1, 2]])}, r"its seeds are int64 \[1, 2\]"),
        ({"seeds": np.zeros(0, np.int64)}, r"its seeds are int64 \[0\]"),
        ({"made": np.zeros((2, 3, 2), np.float32)}, r"made is float32 \[2, 3, 2\], not float32 \[2, 2, 3\]"),
        ({"made": np.zeros((2, 2, 3))}, r"made is float64"),
        ({"denoised": np.zeros((1, 2, 2, 3), np.float32)}, r"denoised is float32 \[1, 2, 2, 3\], not float32 \[2, 2,"),
    ],
)
def test_a_reference_of_something_else_is_damaged(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **reference(**change))
    with pytest.raises(UserError, match=rf"reference\.npz is damaged: {told}.*: export the bundle again"):
        bundle(tmp_path).reference()


def test_examples_are_classes_in_turn_and_what_was_recorded_in_turn(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "reference.npz",
        **reference(input_hint=np.eye(2, dtype=np.float32), input_class_labels=np.array([0, 1])),
    )
    found = bundle(tmp_path, inputs_of(2, 3, class_labels=CLASSES, hint=HINT)).examples(5)
    assert found["class_labels"].tolist() == [0, 1, 2, 0, 1]
    assert found["class_labels"].dtype == np.int64
    assert found["hint"].argmax(1).tolist() == [0, 1, 0, 1, 0]
    (tmp_path / "reference.npz").unlink()
    assert bundle(tmp_path, inputs_of(2, 3, class_labels=CLASSES)).examples(2).keys() == {"class_labels"}


def test_the_copy_of_a_file_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not the file, which may be another one by then."""
    found = bundle(tmp_path)
    found.copy("sampler.onnx", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"sampler.onnx"
    monkeypatch.setattr("shutil.copyfile", lambda path, to: to.write_bytes(b"sampler.onny"))
    with pytest.raises(UserError, match=r"sampler\.onnx is not the file the manifest describes"):
        found.copy("sampler.onnx", tmp_path / "copy")


def test_a_file_is_verified_before_it_is_read(tmp_path: Path) -> None:
    found = bundle(tmp_path)
    assert found.file("sampler.onnx") == tmp_path / "sampler.onnx"
    assert found.read("sampler.onnx") == b"sampler.onnx"
    for wrong in ("sampler.onny", "sampler.onnx ", ""):
        (tmp_path / "sampler.onnx").write_text(wrong)
        for use in (found.file, found.read, found.graph):
            with pytest.raises(UserError, match=r"sampler\.onnx is not the file the manifest describes"):
                use("sampler.onnx")
    os.truncate(tmp_path / "sampler.onnx", 2**40)  # more than any memory holds
    with pytest.raises(UserError, match=r"sampler\.onnx is not the file the manifest describes"):
        found.read("sampler.onnx")
    with pytest.raises(UserError, match=r"holds no decoder\.onnx"):
        found.file("decoder.onnx")
    (tmp_path / "plan.json").unlink()
    with pytest.raises(UserError, match=r"plan\.json is missing, though the manifest lists it"):
        found.file("plan.json")


@pytest.mark.parametrize("weights", ["sampler.onnx.data", WEIGHTS])
def test_a_graphs_weights_are_verified_with_it(weights: str, tmp_path: Path) -> None:
    found = bundle(tmp_path, files=(weights,))
    assert found.graph("sampler.onnx") == tmp_path / "sampler.onnx"
    (tmp_path / weights).write_text("other")
    with pytest.raises(UserError, match=f"{weights} is not the file the manifest describes"):
        found.graph("sampler.onnx")
    assert weights in {path.name for path in weights_beside(tmp_path / "sampler.onnx")}
    assert {path.parent for path in weights_beside(tmp_path / "sampler.onnx")} == {tmp_path}


def test_all_files_but_the_manifest_are_described(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    content = bytes(range(256)) * (PIECE // 256) + b"more"
    (tmp_path / "engines" / "a").write_bytes(content)
    for name in ("b", MANIFEST, f"{MANIFEST}.minisig"):
        (tmp_path / name).write_text(name)
    found = describe_files(tmp_path)
    assert list(found) == ["b", "engines/a"]
    assert found["engines/a"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert file_sha256(tmp_path / "b") == hashlib.sha256(b"b").hexdigest()
