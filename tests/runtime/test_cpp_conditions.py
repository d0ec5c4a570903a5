"""runtime/cpp: conditions of every kind and axes with names, checked and passed on as Python's runtime does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler import runtime
from edge_sampler.runtime.manifest import write_manifest
from edge_sampler.runtime.verified import describe_files
from tests.bundles import facts
from tests.fakes.cpp import VERSION, Run
from tests.runtime.test_cpp_parts import loaded, refused
from tests.runtime.test_page import change
from tests.runtime.test_trt import add_engine


@pytest.fixture
def arms(tmp_path: Path) -> Path:
    """A bundle of no images: an axis with a name, conditions of every type, an engine for two; each input shows."""
    onnx = pytest.importorskip("onnx")
    text = """
        <ir_version: 9, opset_import: ["" : 18]>
        arms (float[batch, length, 3] noise, float[batch, length] goal, bool[batch] still, int64[batch, 2] joint)
            => (float[batch, length, 3] actions) {
            last = Constant<value = int64[1] {2}>()
            column = Unsqueeze(goal, last)
            moved = Add(noise, column)
            one = Constant<value = int64[2] {1, 2}>()
            wide = Unsqueeze(still, one)
            half = Constant<value = float {0.5}>()
            halved = Mul(moved, half)
            chosen = Where(wide, halved, moved)
            joints = Cast<to = 1>(joint)
            first = Constant<value = int64[1] {1}>()
            summed = ReduceSum(joints, first)
            wider = Unsqueeze(summed, last)
            actions = Add(chosen, wider)
        }"""
    folder = tmp_path / "arms"
    folder.mkdir()
    onnx.save(onnx.parser.parse_model(text), folder / "sampler.onnx")
    shapes = {"goal": (["length"], "float32"), "still": ([], "bool"), "joint": ([2], "int64")}
    told: dict[str, dict[str, Any]] = {
        name: {"shape": shape, "dtype": dtype, "null": None, "choices": 0, "description": 'σ "quoted" \\ 関節'}
        for name, (shape, dtype) in shapes.items()
    }
    inputs = {"shape": ["length", 3], "conditions": told, "axes": {"length": [2, 4, 8]}}
    told["joint"] |= {"choices": 5, "null": -7, "ids": 9}
    told_of = facts(inputs, {"name": "actions", "shape": ["length", 3], "units": "radians"})
    write_manifest(folder / "manifest.json", told_of, describe_files(folder))
    add_engine(folder, "tensorrt", "2", version=VERSION)
    return folder


def test_every_kind_of_condition_goes_through(arms: Path, tmp_path: Path, example: Run) -> None:
    goal = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    conditions: Mapping[str, Any] = {"goal": goal, "still": np.array([True, False, True]), "joint": [4, -7]}
    np.save(tmp_path / "goal.npy", goal)
    told = ("--condition", f"goal={tmp_path / 'goal.npy'}", "--condition", "joint=4,-7")
    out = ("--seeds", "3,1,2", "--out", tmp_path / "made.npy")
    result = example(arms, *told, "--condition", "still=true,false,true", *out)
    assert result.returncode == 0, result.stderr
    with runtime.load(arms, "onnxrt") as sampler:
        expected = sampler.sample([3, 1, 2], **conditions)
    np.testing.assert_allclose(loaded(tmp_path / "made.npy"), expected, rtol=0, atol=1e-6)


def test_ids_are_in_their_table(arms: Path, tmp_path: Path, example: Run) -> None:
    inputs = json.loads((arms / "manifest.json").read_text())["inputs"]
    inputs["conditions"]["joint"] |= {"choices": 0, "null": 3}
    change(arms, inputs=inputs)
    told = ("--condition", "goal=1,2", "--condition", "still=true", "--seeds", "0", "--out", tmp_path / "made.npy")
    assert example(arms, *told, "--condition", "joint=8,0").returncode == 0
    for wrong in ("joint=9,0", "joint=0,-1"):
        result = example(arms, *told, "--condition", wrong, "--force")
        refused(result, "which is out of range; joint must be int64 [2], 0 to 8, one or 1")


def test_sizes_come_in_steps(arms: Path, tmp_path: Path, example: Run) -> None:
    """What a size in between would do, no engine tells."""
    inputs = json.loads((arms / "manifest.json").read_text())["inputs"]
    change(arms, inputs=inputs | {"axes": {"length": [2, 4, 8, 2]}})
    told = ("--condition", "still=true", "--condition", "joint=1,2", "--seeds", "0", "--out", tmp_path / "made.npy")
    assert example(arms, "--condition", "goal=1,2,3,4", *told).returncode == 0
    result = example(arms, "--condition", "goal=1,2,3", *told, "--force")
    refused(result, "goal has 3 of length; this sampler takes 2 to 8 in steps of 2")
    change(arms, inputs=inputs | {"axes": {"length": [2, 4, 8, 0]}})
    refused(example(arms, "--condition", "goal=1,2,3,4", *told, "--force"), "an axis has a step of 0")


def test_a_condition_may_have_several_values_for_each_place(arms: Path, tmp_path: Path, example: Run) -> None:
    inputs = json.loads((arms / "manifest.json").read_text())["inputs"]
    inputs["conditions"]["joint"]["shape"] = ["2*length"]
    change(arms, inputs=inputs | {"axes": {"length": [1, 4, 8]}})
    np.save(tmp_path / "goal.npy", np.ones(1, np.float32))
    told = ("--condition", f"goal={tmp_path / 'goal.npy'}", "--condition", "still=true", "--seeds", "0")
    out = ("--out", tmp_path / "made.npy", "--force", "--condition")
    assert example(arms, *told, *out, "joint=1,2").returncode == 0
    refused(example(arms, *told, *out, "joint=1,2,3"), "joint has 3 of 2*length, which is no multiple of 2")
    wrong = "joint has 4 of 2*length, which is length 2, and another condition has 1"
    refused(example(arms, *told, *out, "joint=1,2,3,4"), wrong)
    change(arms, inputs=inputs | {"axes": {"width": [1, 4, 8]}, "shape": [3]})
    refused(example(arms, *told, *out, "joint=1,2"), "a shape is damaged")


def test_a_sampler_is_used_again(arms: Path, tmp_path: Path, example: Run) -> None:
    program = Path(example("--help").args[0]).with_name("twice")
    result = example(arms, tmp_path, program=program, FAKE_NVINFER_BATCH="2:2")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("goal has shape []; goal must be float32 [length], one or 1")
    assert result.stdout.endswith("\n0 live\n")  # though another thread ends it
    turns: list[tuple[list[int], list[float]]] = [([0, 1, 2], [1, 2, 3]), ([5], [1, 2, 3, 4, 5]), ([7, 8], [3, 2, 1])]
    with runtime.load(arms, "onnxrt") as sampler:
        for turn, (seeds, goal) in enumerate(turns):
            expected = sampler.sample(seeds, goal=goal, still=False, joint=[1, 2])
            np.testing.assert_allclose(loaded(tmp_path / f"{turn}.npy"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (["joint=1,2"], ["goal is missing: pass goal=float32 [length]"]),
        (
            ["goal=1,2,3", "still=true", "joint=1,2", "gaol=1"],
            ["unknown condition 'gaol'", "goal, still, joint, length"],
        ),
        (["goal=1,2,3", "still=1", "joint=1,2"], ["still is whole numbers; still must be bool []"]),
        (["goal=1,2,3", "still=true", "joint=1,2.5"], ["joint is fractions; joint must be int64 [2]"]),
        (["goal=1,2,3", "still=true", "joint=1,-1"], ["joint holds -1, which is out of range", "0 to 4 or -7"]),
        (["goal=1,2,3", "still=true", "joint=1,2,3"], ["joint has shape [3]", "int64 [2]"]),
        (["goal=1,2,3", "still=true,true,true", "joint=1,2"], ["still has shape [3]", "one or 2, one for each seed"]),
        (["goal=1", "still=true", "joint=1,2"], ["goal has shape []"]),
        (["goal=1,2,3,4,5,6,7,8,9", "still=true", "joint=1,2"], ["goal has 9 of length; this sampler takes 2 to 8"]),
        (["goal=1,2,3", "length=4", "still=true", "joint=1,2"], ["length is 4, and another condition has 3"]),
        (["goal=1,2,x", "still=true", "joint=1,2"], ["goal=1,2,x: not NAME=NUMBERS or NAME=FILE.npy"]),
        (["goal=1,-3.4028235678e38", "still=true", "joint=1,2"], ["goal holds -3.40282e+38, which is beyond float32"]),
        (["goal=1,1e999", "still=true", "joint=1,2"], ["goal holds NaN or infinity"]),
        (["goal=1,2,3", "still=true", "joint=1,9223372036854775808"], ["no whole number of 64 bits"]),
        (["goal=1,2,3", "still=true", "joint=1,2", "goal=4,5,6"], ["goal is given twice: give it once"]),
        (["goal"], ["--condition goal: not NAME=NUMBERS"]),
        (["goal=none.npy"], ["cannot read none.npy: No such file"]),
    ],
)
def test_a_wrong_condition_is_one_line(
    arms: Path, tmp_path: Path, example: Run, told: list[str], words: list[str]
) -> None:
    conditions = [x for condition in told for x in ("--condition", condition)]
    result = example(arms, "--seeds", "0,1", *conditions, "--out", tmp_path / "made.npy")
    refused(result, *words)
    assert not (tmp_path / "made.npy").exists()
