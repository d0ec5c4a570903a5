"""What is lowered, on graphs of a few nodes: an evaluation is in the middle, states and sums around it."""

from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.export.precision import around_network, clip_masks, inside_network, lower_precision, round_activations
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.runtime.errors import UserError
from tests.export.test_lower_parts import made_by, parsed

NOISE, MADE = "float[batch, 2] noise", "float[batch, 2] images"
WEIGHTS = """float start = {1e7}, float c_in = {0.5}, float c_out = {2}, float c_skip = {0.25},
    float[2, 2] first = {1, 2, 3, 4}, float[2, 2] last = {0.1, 0.2, 0.3, 0.4}"""
EVALUATION = """x = Mul(noise, start) scaled = Mul(x, c_in)
    h = MatMul(scaled, first) soft = Softmax(h) gate = Sigmoid(h) both = Mul(soft, gate) f = MatMul(both, last)
    loud = Mul(f, c_out) kept = Mul(x, c_skip) images = Add(loud, kept)"""
NETWORK = {"h", "gate", "both", "f"}  # softmax stays


def evaluation(nodes: str = EVALUATION, weights: str = WEIGHTS, inputs: str = NOISE, made: str = MADE) -> ir.Model:
    return parsed(nodes, weights, inputs, made)


def names(nodes: set[ir.Node]) -> set[str | None]:
    return {node.outputs[0].name for node in nodes}


def low_of(model: ir.Model) -> set[str | None]:
    return names(inside_network(model.graph, "fp16"))


def value_of(model: ir.Model, name: str) -> ir.Value:
    return next(value for node in model.graph for value in node.outputs if value.name == name)


def constant(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def test_the_network_lies_between_its_first_and_last_weights() -> None:
    assert low_of(evaluation()) == NETWORK
    assert names(around_network(evaluation().graph)) == {"x", "scaled", "loud", "kept", "images"}
    restored = EVALUATION.replace("h = MatMul(scaled, first)", "h = DequantizeLinear(first, c_in) low = Add(h, scaled)")
    bits = WEIGHTS.replace("float[2, 2] first", "int8[2, 2] first")
    found = low_of(evaluation(restored.replace("MatMul(both, last)", "Add(both, low)"), bits))
    assert "h" in found  # a weight of eight bits is one


def test_with_a_decoder_the_loops_last_state_ends_the_network() -> None:
    nodes = EVALUATION.replace("images =", "sample =") + " images = MatMul(sample, last)"
    assert low_of(evaluation(nodes)) == {*NETWORK, "images"}
    assert low_of(evaluation(nodes.replace("sample", "state"))) == {*NETWORK, "loud", "state", "images"}


@pytest.mark.parametrize(("precision", "opset"), [("fp16", 21), ("bf16", 22)])
def test_types_are_low_inside_and_casts_are_where_they_change(precision: str, opset: int) -> None:
    model = evaluation()
    lower_precision(model, precision)
    dtype = PRECISIONS[precision].dtype
    for node in model.graph:
        if node.op_type != "Cast":
            low = node.outputs[0].name in NETWORK
            assert {value.dtype for value in node.inputs if value} == {dtype if low else ir.DataType.FLOAT}
            assert node.outputs[0].dtype == (dtype if low else ir.DataType.FLOAT)
    casts = Counter(node.inputs[0].name for node in model.graph if node.op_type == "Cast" and node.inputs[0])
    assert casts == {"scaled": 1, "h": 1, "soft": 1, "f": 1}
    assert model.graph.opset_imports[""] == opset


def test_an_inputs_cast_comes_first_and_serves_all() -> None:
    nodes = "a = MatMul(noise, first) b = MatMul(noise, last) images = Add(a, b)"
    model = evaluation(nodes)
    lower_precision(model, "fp16")
    assert [node.op_type for node in model.graph] == ["Cast", "MatMul", "Cast", "MatMul", "Cast", "Add"]


@pytest.mark.parametrize("change", [lower_precision, round_activations])
def test_what_is_made_is_rounded_as_sixteen_bits_are(change: object, tmp_path: Path) -> None:
    assert callable(change)
    weights = WEIGHTS.replace("1e7", "1").replace("{0.1,", "{0.1001,")
    model = evaluation(weights=weights)
    change(model, "fp16")
    noise = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    first, last = np.array([[1, 2], [3, 4.0]]), np.array([[0.1001, 0.2], [0.3, 0.4]])

    def low(values: np.ndarray, dtype: type = np.float16) -> np.ndarray:
        return values.astype(dtype).astype(np.float64)

    def denoised(low: object) -> np.ndarray:
        assert callable(low)
        scaled = noise * 0.5 if change is round_activations else low(noise * 0.5)
        h = low(scaled @ first)
        soft = np.exp(h) / np.exp(h).sum(1, keepdims=True)
        both = low((soft if change is round_activations else low(soft)) * low(1 / (1 + np.exp(-h))))
        return 2 * low(both @ low(last)) + noise * 0.25

    save = made_by(model, tmp_path, made="images", noise=noise)
    np.testing.assert_allclose(save, denoised(low), atol=2e-3)
    assert np.abs(save - denoised(np.asarray)).max() > 1e-5


def test_what_is_rounded_is_what_would_be_lowered() -> None:
    model = evaluation()
    round_activations(model, "bf16")
    casts = [node for node in model.graph if node.op_type == "Cast"]
    assert len(casts) == 2 * len(NETWORK)
    for name in NETWORK:
        (down,) = (node for node, _ in value_of(model, name).uses())
        (up,) = (node for node, _ in down.outputs[0].uses())
        assert (down.outputs[0].dtype, up.outputs[0].dtype) == (ir.DataType.BFLOAT16, ir.DataType.FLOAT)
        assert up.outputs[0].uses()
    weight = constant(next(node for node in model.graph if node.outputs[0].name == "f").inputs[1])
    assert weight.dtype == np.float32
    exact = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    np.testing.assert_array_equal(weight.ravel(), exact.astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("change", [lower_precision, round_activations])
def test_sizes_of_a_resize_stay_as_they_are(change: object) -> None:
    assert callable(change)
    model = parsed(
        'a = Conv(noise, w) b = Resize<mode = "nearest">(a, regions, scales) images = Conv(b, w)',
        "float[1, 1, 1, 1] w = {0.1}, float[4] scales = {1, 1, 2.0001, 2}, "
        "float[8] regions = {0, 0, 0, 0, 1, 1, 1, 0.9}",
        "float[batch, 1, 2, 2] noise",
        "float[batch, 1, 4, 4] images",
    )
    change(model, "fp16")
    resize = next(node for node in model.graph if node.op_type == "Resize")
    for place, kept in ((1, [0, 0, 0, 0, 1, 1, 1, 0.9]), (2, [1, 1, 2.0001, 2])):
        assert constant(resize.inputs[place]).tolist() == np.array(kept, np.float32).tolist()
    assert "b" in {node.outputs[0].name for node in inside_network(model.graph, "fp16")}


@pytest.mark.parametrize("change", [lower_precision, round_activations])
def test_whole_numbers_stay_as_they_are(change: object) -> None:
    assert callable(change)
    model = evaluation(
        EVALUATION.replace("f = MatMul(both", "size = Shape(h) again = Reshape(both, size) f = MatMul(again")
    )
    change(model, "fp16")
    size = value_of(model, "size")
    assert size.dtype == ir.DataType.INT64
    assert [node.op_type for node, _ in size.uses()] == ["Reshape"]


HIDDEN = """x = Mul(noise, start) scaled = Mul(x, c_in) hidden = Mul(mask, lowest)
    h = MatMul(scaled, first) masked = Add(h, hidden) again = Add(masked, inner) f = MatMul(again, last)
    loud = Mul(f, c_out) kept = Mul(x, c_skip) images = Add(loud, kept)"""


@pytest.mark.parametrize(
    ("number", "precision", "clipped"),
    [
        ("-3.4028234e38", "fp16", -65504.0),
        ("-1e5", "fp16", -65504.0),
        ("65504", "fp16", 65504.0),
        ("-3.4e38", "bf16", -float.fromhex("0x1.fep127")),
        ("-1e5", "bf16", -1e5),
    ],
)
def test_a_masks_number_is_kept_within_the_precisions(number: str, precision: str, clipped: float) -> None:
    """Whether it is added inside of the network, or to what is known before the loop; states are no masks."""
    weights = f"{WEIGHTS}, float lowest = {{{number}}}, float[1] inner = {{{number}}}"
    model = evaluation(HIDDEN, weights, f"{NOISE}, float[batch, 2] mask")
    clip_masks(model.graph, precision)
    found = {node.outputs[0].name: node.inputs[1] for node in model.graph}
    assert constant(found["hidden"]) == constant(found["again"]) == np.float32(clipped)
    assert constant(found["x"]) == np.float32(1e7)
    assert constant(found["again"]).shape == (1,)


def test_infinities_and_arrays_are_no_masks_numbers() -> None:
    weights = f"{WEIGHTS}, float lowest = {{1}}, float[2] inner = {{1e5, 0}}"
    model = evaluation(HIDDEN, weights, f"{NOISE}, float[batch, 2] mask")
    infinity = ir.tensor(np.array(-np.inf, np.float32), name="lowest")
    model.graph.initializers["lowest"].const_value = infinity
    clip_masks(model.graph, "fp16")
    found = {node.outputs[0].name: node.inputs[1] for node in model.graph}
    assert constant(found["hidden"]) == -np.inf
    assert constant(found["again"]).tolist() == [1e5, 0]


@pytest.mark.parametrize(("largest", "fits"), [(65504.0, True), (-65504.0, True), (np.inf, True), (-65600.0, False)])
def test_a_weight_has_to_fit(largest: float, fits: bool) -> None:
    model = evaluation()
    weight = np.array([[1, largest], [0, 2]], np.float32)
    model.graph.initializers["first"].const_value = ir.tensor(weight, name="first")
    if fits:
        lower_precision(model, "fp16")
        assert constant(next(node for node in model.graph if node.outputs[0].name == "h").inputs[1])[0, 1] == largest
    else:
        with pytest.raises(UserError, match=r"first holds 6\.56e\+04, more than fp16's 65504: use bf16 or fp32"):
            lower_precision(model, "fp16")


def test_a_network_without_weights_of_its_own_has_nothing_to_lower() -> None:
    with pytest.raises(UserError, match="fp16 would change nothing: the network has no Conv, ConvTranspose, Einsum"):
        lower_precision(parsed("a = Tanh(x) made = Mul(a, two)", "float two = {2}"), "fp16")


def test_a_product_by_einsum_is_one_of_matrices() -> None:
    nodes = 'a = Einsum<equation = "bchw,cd->bdhw">(x, w) b = Tanh(a) made = Einsum<equation = "bchw,cd->bdhw">(b, w)'
    model = parsed(nodes, f"float[4, 4] w = {{{', '.join(map(str, range(16)))}}}")
    assert {node.op_type for node in inside_network(model.graph, "fp16")} == {"Einsum", "Tanh"}


def test_an_array_that_hides_is_kept_within_the_precisions() -> None:
    """As a causal mask of large negative numbers, which a network holds as a buffer."""
    weights = f"{WEIGHTS}, float lowest = {{1}}, float[2] inner = {{-1e9, 2}}"
    model = evaluation(HIDDEN, weights, f"{NOISE}, float[batch, 2] mask")
    clip_masks(model.graph, "fp16")
    found = {node.outputs[0].name: node.inputs[1] for node in model.graph}
    assert constant(found["again"]).tolist() == [-65504, 2]


def test_what_was_counted_or_compared_is_cast_to_the_precision(tmp_path: Path) -> None:
    nodes = "h = Conv(x, w) m = Greater(h, zero) f = Cast<to = 1>(m) k = Mul(h, f) made = Conv(k, w)"
    weights = f"float[4, 4, 1, 1] w = {{{', '.join(map(str, range(16)))}}}, float zero = {{0}}"
    model = parsed(nodes, weights)
    x = np.random.default_rng(0).standard_normal((2, 4, 2, 3)).astype(np.float32)
    expected = made_by(model, tmp_path, x=x)
    lower_precision(model, "fp16")
    found = made_by(model, tmp_path, x=x)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.01 * np.abs(expected).max()
