"""Rewrites on graphs of a few nodes: what is rewritten computes the same, and what is only nearly so is left alone."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.lower import (
    compute_in_single_precision,
    drop_unused,
    keep_batch_in_reshapes,
    lower_group_norm,
    lower_opset,
    transpose_keys_at_once,
)
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import fix_batch, prepare_for_tensorrt
from edge_sampler.runtime.backends.onnxrt import Session
from tests.conftest import relative

IMAGES = "float[batch, 4, 2, 3] x"
SCALE = "float[4] scale = {1, -2, 0.5, 3}, float[4] bias = {0, 1, -1, 2}"


def parsed(nodes: str, weights: str = "", inputs: str = IMAGES, made: str = "float[batch, 4, 2, 3] made") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["" : 21]> toy ({inputs}) => ({made}) <{weights}> {{ {nodes} }}'
    proto = onnx.parser.parse_model(text if weights else text.replace(" <>", ""))
    for value in proto.graph.input:
        value.type.tensor_type.shape.SetInParent()
    model = ir.serde.deserialize_model(proto)
    ShapeInferencePass()(model)
    return model


def made_by(model: ir.Model, folder: Path, made: str = "made", **feed: np.ndarray) -> np.ndarray:
    save_checked(model, folder / "a.onnx")
    with Session(folder / "a.onnx") as session:
        return session.run(feed)[made]


def images(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(1, 2, size=(count, 4, 2, 3)).astype(np.float32)


def group_norm(x: np.ndarray, groups: int, epsilon: float) -> np.ndarray:
    """Wu and He, arXiv 1803.08494, eq. 1 to 7, with the weights above."""
    grouped = x.reshape(len(x), groups, -1)
    centred = grouped - grouped.mean(2, keepdims=True)
    normal = (centred / np.sqrt(grouped.var(2, keepdims=True) + epsilon)).reshape(x.shape)
    scale, bias = np.array([1, -2, 0.5, 3]), np.array([0, 1, -1, 2])
    shape = (4, *[1] * (x.ndim - 2))
    return normal * scale.reshape(shape) + bias.reshape(shape)


def count(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_group_norm_goes_down_and_up_again(groups: int, tmp_path: Path) -> None:
    model = parsed(f"made = GroupNormalization<num_groups = {groups}, epsilon = 0.5>(x, scale, bias)", SCALE)
    lower_group_norm(model)
    assert count(model) == {"Reshape": 2, "LayerNormalization": 1, "BatchNormalization": 1}
    (x,) = model.graph.inputs
    assert [reader.op_type for reader in x.consumers()] == ["Reshape"]  # and no node that is not in the graph
    expected = group_norm(images(), groups, 0.5)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5
    keep_batch_in_reshapes(model)
    prepare_for_tensorrt(model, 3)
    assert count(model)["GroupNormalization"] == (groups > 1)  # TensorRT computes another thing of one group
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5
    assert model.graph.inputs[0].shape == ir.Shape([3, 4, 2, 3])


@pytest.mark.parametrize(
    ("shape", "size"), [("batch, 4, T", (7,)), ("batch, 4, 2, T", (2, 5)), ("batch, 4, T, U", (3, 5))]
)
def test_where_a_call_chooses_sizes_it_is_an_instance_norm_of_groups(
    shape: str, size: tuple[int, ...], tmp_path: Path
) -> None:
    model = parsed(
        "made = GroupNormalization<num_groups = 2, epsilon = 0.5>(x, scale, bias)",
        SCALE,
        f"float[{shape}] x",
        f"float[{shape}] made",
    )
    lower_group_norm(model)
    assert count(model)["InstanceNormalization"] == 1
    assert count(model)["Shape"] == (shape.count("T") + shape.count("U") > 1)
    x = np.random.default_rng(0).normal(1, 2, size=(3, 4, *size)).astype(np.float32)
    assert relative(made_by(model, tmp_path, x=x), group_norm(x, 2, 0.5)) < 1e-5


def test_every_group_norm_is_lowered_and_nothing_else(tmp_path: Path) -> None:
    nodes = "a = Abs(x) b = GroupNormalization<num_groups = 2, epsilon = 0.5>(a, scale, bias) c = Tanh(b)"
    model = parsed(f"{nodes} made = GroupNormalization<num_groups = 4, epsilon = 0.5>(c, scale, bias)", SCALE)
    for node in model.graph:  # which the exporter knows
        node.outputs[0].shape = model.graph.inputs[0].shape
    lower_group_norm(model)
    assert count(model) == {"Abs": 1, "Tanh": 1, "Reshape": 4, "LayerNormalization": 2, "BatchNormalization": 2}
    expected = group_norm(np.tanh(group_norm(np.abs(images()), 2, 0.5)), 4, 0.5)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5


def test_doubles_are_floats_but_where_the_level_alone_decides(tmp_path: Path) -> None:
    model = parsed(
        """d = Cast<to = 11>(x) l = Cast<to = 11>(sigma) e = Exp(l) h = Mul(d, e) k = Mul(h, w) f = Cast<to = 1>(k)
        a = Cast<to = 1>(e) b = Mul(f, a) i = Cast<to = 6>(x) j = Cast<to = 1>(i) c = Add(b, j) made = Add(c, x)""",
        "double[1] w = {0.1}",
        f"{IMAGES}, float sigma",
    )
    feed: dict[str, Any] = {"x": images(), "sigma": np.array(0.5, np.float32)}
    expected = made_by(model, tmp_path, **feed)
    compute_in_single_precision(model.graph)
    ShapeInferencePass()(model)
    assert relative(made_by(model, tmp_path, **feed), expected) < 1e-6
    dtypes = {str(value.name): value.dtype for node in model.graph for value in node.outputs}
    doubles = {name for name, dtype in dtypes.items() if dtype == ir.DataType.DOUBLE}
    assert doubles == {"l", "e"}
    assert count(model)["Cast"] == 5  # of the level, to its double, and twice back; to whole numbers and back
    assert not {"d", "f"} & dtypes.keys()  # casts of a float to a float


KEYS = """s = Shape(k) flat = Reshape(k, {flat}) t = Transpose<perm = [{perm}]>(flat) back = Reshape(t, {back})
    made = Mul(back, two)"""


@pytest.mark.parametrize(
    ("flat", "perm", "back", "once"),
    [
        ("{-1, 3, 5}", "0, 2, 1", "{2, 4, 5, 3}", True),
        ("{8, 3, 5}", "0, 2, 1", "{2, 4, 5, 3}", True),
        ("{-1, 3, 5}", "0, 2, 1", "{4, 2, 5, 3}", False),
        ("{8, 3, 5}", "2, 1, 0", "{2, 4, 5, 3}", False),
        ("{-1, 5, 3}", "0, 2, 1", "{2, 4, 5, 3}", False),
        ("{-1, 3, 5}", "0, 2, 1", "{8, 1, 5, 3}", False),
        ("{-1, 3, 5}", "0, 2, 1", "{1, 8, 5, 3}", False),
    ],
)
def test_keys_are_transposed_at_once(flat: str, perm: str, back: str, once: bool, tmp_path: Path) -> None:
    sizes = [int(size) for size in back.strip("{}").split(",")]
    model = parsed(
        KEYS.format(flat="one", perm=perm, back="other"),
        f"int64[3] one = {flat}, int64[4] other = {back}, float two = {{2}}",
        "float[2, 4, 3, 5] k",
        f"float{sizes} made",
    )
    k = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
    expected = made_by(model, tmp_path, k=k)
    transpose_keys_at_once(model)
    assert (count(model)["Reshape"] == 0) == once
    assert count(model)["Transpose"] == 1
    np.testing.assert_array_equal(made_by(model, tmp_path, k=k), expected)


@pytest.mark.parametrize("more", ["also = Abs(t)", "also = Reshape(t, other)", "also = Abs(flat) last = Abs(t)"])
def test_what_others_read_stays_transposed(more: str) -> None:
    model = parsed(
        f"""flat = Reshape(k, one) t = Transpose<perm = [0, 2, 1]>(flat) back = Reshape(t, other) made = Abs(back)
        {more}""",
        "int64[3] one = {8, 3, 5}, int64[4] other = {2, 4, 5, 3}",
        "float[2, 4, 3, 5] k",
        "float[2, 4, 5, 3] made",
    )
    before = count(model)
    transpose_keys_at_once(model)
    assert count(model) == before


def test_keys_whose_sizes_are_computed_are_transposed_at_once(tmp_path: Path) -> None:
    model = parsed(
        """s = Shape(k) n = Shape<start = 0, end = 1>(k) h = Slice(s, i1, i2) r = Slice(s, i2, i3) c = Slice(s, i3, i4)
        f = Concat<axis = 0>(minus, r, c) flat = Reshape(k, f) t = Transpose<perm = [0, 2, 1]>(flat)
        b = Concat<axis = 0>(n, h, c, r) back = Reshape(t, b) made = Mul(back, two)""",
        "int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i3 = {3}, int64[1] i4 = {4}, int64[1] minus = {-1}, "
        "float two = {2}",
        "float[batch, 4, T, 5] k",
        "float[batch, 4, 5, T] made",
    )
    k = np.random.default_rng(0).normal(size=(2, 4, 3, 5)).astype(np.float32)
    transpose_keys_at_once(model)
    assert count(model) == {"Transpose": 1, "Mul": 1}
    np.testing.assert_array_equal(made_by(model, tmp_path, k=k), 2 * k.swapaxes(2, 3))


@pytest.mark.parametrize(
    ("target", "made", "kept"),
    [("{-1, 2, 12}", "batch, 2, 12", True), ("{-1, 12}", "rows, 12", False), ("{0, 24}", "batch, 24", False)],
)
def test_reshapes_that_keep_the_batch_say_so(target: str, made: str, kept: bool, tmp_path: Path) -> None:
    rank = made.count(",") + 1
    nodes, weights = "made = Reshape<allowzero = 1>(k, to)", f"int64[{rank}] to = {target}"
    if not kept and "0" in target.split(",")[0]:
        nodes = "made = Reshape(k, to)"
    nodes = f"k = Identity(x) {nodes}"
    model = parsed(nodes, weights, made=f"float[{made}] made")
    expected = made_by(model, tmp_path, x=images())
    keep_batch_in_reshapes(model)
    _, node = model.graph
    assert node.inputs[1] is not None
    assert node.inputs[1].const_value is not None
    assert (node.inputs[1].name != "to") == kept
    if kept:
        assert node.inputs[1].const_value.numpy().tolist() == [0, 2, 12]
    np.testing.assert_array_equal(made_by(model, tmp_path, x=images()), expected)


def test_a_batch_is_fixed_and_an_opset_goes_down_alone() -> None:
    shape = "float[batch, 4, T, 3]"
    model = parsed("a = Abs(x) made = Identity(a)", inputs=f"{shape} x", made=f"{shape} made")
    fix_batch(model, 7)
    assert [str(size) for size in model.graph.outputs[0].shape or ()] == ["7", "4", "T", "3"]
    for opset, found in ((20, 20), (22, 20)):
        lower_opset(model, opset)
        assert model.opset_imports[""] == found
    with pytest.raises(AssertionError):
        lower_opset(parsed("made = GroupNormalization<num_groups = 2>(x, scale, bias)", SCALE), 20)


def test_what_nobody_reads_is_dropped(tmp_path: Path) -> None:
    model = parsed("a = Mul(x, two) made = Abs(a)", "float two = {2}, float three = {3}")
    expected = made_by(model, tmp_path, x=images())
    drop_unused(model.graph)
    assert set(model.graph.initializers) == {"two"}
    inner, last = model.graph
    assert (inner.outputs[0].shape, inner.outputs[0].type) == (None, None)
    assert last.outputs[0].shape is not None
    assert relative(made_by(model, tmp_path, x=images()), expected) == 0
