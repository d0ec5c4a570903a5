"""Rewrites beside other nodes: those are left alone, and what comes behind them is rewritten all the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.export.lower import (
    compute_in_single_precision,
    keep_batch_in_reshapes,
    lower_group_norm,
    transpose_keys_at_once,
)
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt, raise_group_norm, widen_scalars
from tests.conftest import relative
from tests.export.test_lower_parts import SCALE, count, group_norm, images, made_by, parsed
from tests.export.test_tensorrt_graph import LOWERED, NODES

KEYS = "flat = Reshape(k, one) t = Transpose<perm = [0, 2, 1]>(flat) back = Reshape(t, other) made = Abs(back)"
TARGETS = "int64[3] one = {8, 3, 5}, int64[4] other = {2, 4, 5, 3}, int64[1] first = {1}"
TRANSPOSED = "float[2, 4, 5, 3] made"


@pytest.mark.parametrize(
    ("before", "inputs", "made"),
    [
        ("a = Transpose<perm = [0, 2, 1]>(z)", "float[8, 3, 5] z", "float[8, 5, 3] a"),  # of an input
        ("b = Abs(z) a = Transpose<perm = [0, 2, 1]>(b)", "float[8, 3, 5] z", "float[8, 5, 3] a"),
        ("a = Transpose(z)", "float[8, 3, 5] z", "float[5, 3, 8] a"),  # all axes are turned round
        ("f = Reshape(z, one) a = Transpose<perm = [0, 2, 1]>(f)", "float[2, 4, 3, 5] z", "float[8, 5, 3] a"),
        (
            "f = Reshape(z, one) b = Transpose<perm = [0, 2, 1]>(f) a = Reshape(b, other)",
            "float[2, 2, 2, 3, 5] z",
            "float[2, 4, 5, 3] a",
        ),
        (  # to sizes that nobody knows
            "f = Reshape(z, one) b = Transpose<perm = [0, 2, 1]>(f) s = Shape(z) c = Slice(s, first, e) "
            "a = Reshape(b, c)",
            "float[2, 4, 3, 5] z, int64[1] e",
            "float[A, B, C] a",
        ),
    ],
)
def test_other_transposes_stay_and_keys_behind_them_do_not(before: str, inputs: str, made: str) -> None:
    model = parsed(f"{before} {KEYS}", TARGETS, f"float[2, 4, 3, 5] k, {inputs}", f"{made}, {TRANSPOSED}")
    alone = count(model) - count(parsed(KEYS, TARGETS, "float[2, 4, 3, 5] k", TRANSPOSED))
    transpose_keys_at_once(model)
    assert count(model) == alone + Counter(Transpose=1, Abs=1)


def test_keys_that_are_only_reshaped_stay() -> None:
    model = parsed(KEYS.replace("[0, 2, 1]", "[0, 1, 2]"), TARGETS, "float[2, 4, 3, 5] k", TRANSPOSED)
    before = count(model)
    transpose_keys_at_once(model)
    assert count(model) == before


def test_keys_of_an_unknown_shape_stay() -> None:
    model = parsed(f"k = Abs(x) {KEYS}", TARGETS, "float[2, 4, 3, 5] x", TRANSPOSED)
    model.graph.node(0).outputs[0].shape = None
    before = count(model)
    transpose_keys_at_once(model)
    assert count(model) == before


def test_what_a_group_norm_becomes_is_named_by_it() -> None:
    model = parsed("made = GroupNormalization<num_groups = 2>(x, scale, bias)", SCALE)
    lower_group_norm(model)
    assert [node.outputs[0].name for node in model.graph] == [
        "made_grouped", "made_normalised", "made_back", "made"
    ]  # fmt: skip


def test_a_norm_has_onnxs_epsilon_unless_told(tmp_path: Path) -> None:
    """Graphs from elsewhere leave it out."""
    model, small = parsed("made = GroupNormalization<num_groups = 2>(x, scale, bias)", SCALE), images() / 1000
    expected = group_norm(small, 2, 1e-5)
    for change in (lower_group_norm, lambda model: raise_group_norm(model.graph)):
        change(model)
        assert relative(made_by(model, tmp_path, x=small), expected) < 1e-5
    model = parsed(NODES.replace(", epsilon = 0.001", ""), ", ".join(LOWERED.values()))
    raise_group_norm(model.graph)
    assert relative(made_by(model, tmp_path, x=small), expected) < 1e-5


@pytest.mark.parametrize(
    ("axis", "raised"), [("axis = 2,", 1), ("axis = -1,", 1), ("", 1), ("axis = 1,", 0), ("axis = 0,", 0)]
)
def test_a_norm_is_of_one_group_at_a_time(axis: str, raised: int) -> None:
    """The last axis alone, which is where a norm is unless told."""
    model = parsed(NODES.replace("axis = 2,", axis), ", ".join(LOWERED.values()))
    raise_group_norm(model.graph)
    assert count(model)["GroupNormalization"] == raised


@pytest.mark.parametrize(("opset", "expected"), [(20, 21), (21, 21), (22, 22)])
def test_a_group_norm_asks_for_an_opset_that_has_it(opset: int, expected: int) -> None:
    model = parsed(NODES, ", ".join(LOWERED.values()))
    model.opset_imports[""] = opset
    prepare_for_tensorrt(model, None, group_norm=False)
    assert model.opset_imports[""] == opset
    prepare_for_tensorrt(model, None)
    assert model.opset_imports[""] == expected


def test_a_double_behind_another_input_is_single_too(tmp_path: Path) -> None:
    model = parsed(
        "d = Cast<to = 11>(x) c = Greater(x, zero) h = Where(c, d, w) made = Cast<to = 1>(h)",
        "double[1] w = {0.5}, float zero = {0}",
    )
    compute_in_single_precision(model.graph)
    assert relative(made_by(model, tmp_path, x=images()), np.where(images() > 0, images(), 0.5)) < 1e-6
    assert not any(value.dtype == ir.DataType.DOUBLE for node in model.graph for value in node.outputs)


def test_reshapes_that_are_computed_stay_and_those_behind_do_not(tmp_path: Path) -> None:
    model = parsed(
        "t = Abs(to) a = Reshape(x, t) b = Abs(a) made = Reshape(b, back)",
        "int64[2] to = {-1, 24}, int64[4] back = {-1, 4, 2, 3}",
    )
    reshaped = [node for node in model.graph if node.op_type == "Reshape"]
    for node in list(model.graph)[1:3]:  # which an exporter knows
        node.outputs[0].shape = ir.Shape(["batch", 24])
    keep_batch_in_reshapes(model)
    computed, constant = (node.inputs[1] for node in reshaped)
    assert computed is not None
    assert constant is not None
    assert computed.name == "t"
    assert constant.const_value is not None
    assert constant.const_value.numpy().tolist() == [0, 4, 2, 3]


def test_scalars_behind_other_nodes_are_widened() -> None:
    model = parsed("a = Abs(x) made = Mul(a, s)", "float s = {2}")
    widen_scalars(model.graph)
    factor = model.graph.node(1).inputs[1]
    assert factor is not None
    assert factor.shape == ir.Shape([1, 1, 1, 1])
