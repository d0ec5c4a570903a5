"""What moves into weights computes the same; what cannot move there stays."""

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from edge_sampler.export.fold import fold_into_weights
from edge_sampler.models.networks.layers import BlockStyle, UNetBlock, attention_joined
from tests.conftest import relative
from tests.export.test_lower_parts import count, images, made_by, parsed

WEIGHTS = """float[4, 4, 1, 1] w = {1, 2, 0, -1, 0.5, 0, 1, 3, -2, 1, 1, 0, 0, 1, -1, 2}, float[4] b = {1, -1, 0, 2},
    float[4, 4, 1, 1] v = {0, 1, 3, 1, 2, 0, -1, 1, 1, 1, -2, 0, 1, 0, 0, 1}, float half = {0.5},
    float[6] ones = {1, 1, 1, 1, 1, 1}, int64[3] rows = {0, 4, 6}, int64[4] back = {0, 4, 2, 3}"""
NORM = "g = Reshape({}, rows) n = LayerNormalization<axis = 2, epsilon = 0.001>(g, ones) r = Reshape(n, back)"
SUM = "c = Conv(x, w, b) d = Conv(x, v) s = Add(c, d)"
AFFINE = "float[4] scale = {1, -2, 0.5, 3}, float[4] bias = {0, 1, -1, 2}, float[4] zeros = {0, 0, 0, 0}"
AFFINE += ", float[4] variance = {0.75, 0.75, 0.75, 0.75}"
NORMAL = "a = BatchNormalization<epsilon = 0.25>(x, scale, bias, zeros, variance)"


def folded(nodes: str, weights: str, folder: Path, scale: float = 1.0) -> tuple[Counter[str], ir.Model]:
    """The number of nodes by operator, and the graph, which computes what it did."""
    model, x = parsed(nodes, weights), scale * images()
    expected = made_by(model, folder, x=x)
    fold_into_weights(model)
    assert relative(made_by(model, folder, x=x), expected) < 1e-6
    return count(model), model


@pytest.mark.parametrize(
    "nodes",
    [
        f"{SUM} m = Mul(s, half) made = Tanh(m)",
        f"{SUM} m = Mul(half, s) made = Tanh(m)",
        "c = Conv(x, w, b) m = Mul(c, half) made = Tanh(m)",
        "c = Conv(x, w, b) s = Add(c, c) m = Mul(s, half) made = Tanh(m)",
        "c = Conv(x, w, b) d = Conv(x, w) s = Add(d, c) m = Mul(s, half) made = Tanh(m)",  # the later one first
        "c = ConvTranspose(x, w, b) m = Mul(c, half) made = Tanh(m)",
        f"{SUM} m = Mul(s, half) k = Mul(m, half) made = Tanh(k)",
        f"{SUM} m = Mul(s, row) made = Tanh(m)",
        "k = Abs(w) c = Conv(x, k, b) d = Conv(x, k) s = Add(c, d) m = Mul(s, half) made = Tanh(m)",
        "k = Abs(w) c = Conv(x, k) d = Conv(x, k) m = Mul(c, half) n = Mul(d, row) s = Add(m, n) made = Tanh(s)",
    ],
)
def test_a_factor_goes_into_convolutions(nodes: str, tmp_path: Path) -> None:
    found, _ = folded(nodes, f"{WEIGHTS}, float[1] row = {{0.25}}", tmp_path)
    assert "Mul" not in found


def test_a_weight_that_another_reads_stays(tmp_path: Path) -> None:
    nodes = f"{SUM} m = Mul(s, half) e = Conv(m, w, b) made = Tanh(e)"
    found, model = folded(nodes, WEIGHTS, tmp_path)
    assert "Mul" not in found
    assert {"w", "b"} <= model.graph.initializers.keys()


@pytest.mark.parametrize("scale", [1.0, 0.003])  # where a norm's epsilon decides
def test_norms_that_read_the_sum_get_another_epsilon(scale: float, tmp_path: Path) -> None:
    """As in a block with attention: its norm reads what the second sum multiplies."""
    weights = WEIGHTS.replace("b = {1, -1, 0, 2}", "b = {0, 0, 0, 0}").replace("half = {0.5}", "half = {0.25}")
    nodes = f"{SUM} m = Mul(s, half) {NORM.format('m')} k = Mul(m, half) made = Add(r, k)"
    found, _ = folded(nodes, weights, tmp_path, scale)
    assert "Mul" not in found
    for norm in ("LayerNormalization<axis = -1, epsilon = 0.01>(m, three)", "InstanceNormalization(m, b, b)"):
        nodes = f"{SUM} m = Mul(s, half) r = {norm} k = Mul(m, half) made = Add(r, k)"
        found, _ = folded(nodes, f"{WEIGHTS}, float[3] three = {{1, 2, 3}}", tmp_path, scale)
        assert "Mul" not in found


STAYING = {
    "it is the output": f"{SUM} made = Mul(s, half)",
    "another reads the sum": f"{SUM} m = Mul(s, half) made = Add(m, s)",
    "another reads a part": f"{SUM} m = Mul(s, half) made = Add(m, d)",
    "a part is no convolution": "c = Conv(x, w, b) s = Add(c, x) m = Mul(s, half) made = Tanh(m)",
    "a part is a weight": "c = Conv(x, w, b) s = Add(c, half) m = Mul(s, half) made = Tanh(m)",
    "a factor of the input": f"{SUM} k = ReduceMean(x) m = Mul(s, k) made = Tanh(m)",
    "a factor for each channel": f"{SUM} m = Mul(s, each) made = Tanh(m)",
    "a factor with axes": f"{SUM} m = Mul(s, wide) made = Squeeze(m, first)",
    "a small factor": f"{SUM} m = Mul(s, small) made = Tanh(m)",
    "a large factor": f"{SUM} m = Mul(s, large) made = Tanh(m)",
    "a factor below 0": f"{SUM} m = Mul(s, below) made = Tanh(m)",
    "weights of the input": "k = ReduceMean(x) u = Mul(w, k) c = Conv(x, u) m = Mul(c, half) made = Tanh(m)",
    "a norm's spread is read": f"{SUM} r, e, spread = LayerNormalization<axis = -1>(s, three) m = Mul(s, half) "
    "t = Add(r, spread) made = Add(t, m)",
    "two read what a norm gets": f"{SUM} {NORM.format('s')} k = Abs(g) q = ReduceSum(k) m = Mul(s, half) t = Add(r, q) "
    "made = Add(t, m)",
}


@pytest.mark.parametrize("kind", STAYING)
def test_a_factor_stays_where(kind: str, tmp_path: Path) -> None:
    weights = f"""{WEIGHTS}, float[4, 1, 1] each = {{1, 2, 3, 4}}, float small = {{0.1}}, float large = {{9}},
        float below = {{-1}}, float[3] three = {{1, 2, 3}}, float[1, 1, 1, 1, 1] wide = {{2}}, int64[1] first = {{0}}"""
    found, _ = folded(STAYING[kind], weights, tmp_path)
    assert "Mul" in found


@pytest.mark.parametrize("convolution", ["Conv(a, w)", "Conv(a, w, b)", "Conv<group = 1>(a, w)"])
def test_what_follows_a_norm_goes_into_a_convolution(convolution: str, tmp_path: Path) -> None:
    found, _ = folded(f"{NORMAL} c = {convolution} made = Tanh(c)", f"{WEIGHTS}, {AFFINE}", tmp_path)
    assert found == {"Conv": 1, "Tanh": 1}


APART = {
    "another reads it": f"{NORMAL} c = Conv(a, w) made = Add(c, a)",
    "it is padded": f"{NORMAL} c = Conv<pads = [0, 0, 1, 0]>(a, w) made = Slice(c, first, second, axis)",
    "it is padded by name": f'{NORMAL} c = Conv<auto_pad = "SAME_UPPER", strides = [1, 2]>(a, w) d = Conv(x, w) '
    "t = ReduceSum(c) made = Add(d, t)",
    "it is wider": f"{NORMAL} made = Conv<pads = [1, 1, 1, 1]>(a, three)",
    "it has groups": f"{NORMAL} made = Conv<group = 2>(a, pairs)",
    "it is the weight": f"{NORMAL} c = Conv(y, a) t = ReduceSum(c) made = Add(x, t)",
    "a variance": f"{NORMAL.replace('0.25', '0.5')} made = Conv(a, w)",
}


@pytest.mark.parametrize("kind", APART)
def test_what_follows_a_norm_stays_where(kind: str, tmp_path: Path) -> None:
    weights = f"""{WEIGHTS}, {AFFINE}, float[4, 2, 1, 1] pairs = {{1, 2, 0, -1, 0.5, 0, 1, 3}}, int64[1] first = {{0}},
        int64[1] second = {{2}}, int64[1] axis = {{2}}, float[4, 4, 3, 3] three = {{{", ".join(map(str, range(144)))}}},
        float[1, 4, 2, 3] y = {{{", ".join(map(str, range(24)))}}}"""
    found, _ = folded(APART[kind], weights, tmp_path)
    assert found["BatchNormalization"] == 1


def test_what_depends_on_no_input_is_a_weight(tmp_path: Path) -> None:
    weights = "float[4, 1, 1] each = {1, 2, 3, 4}, int8[4, 1, 1] eight = {1, 2, 3, 4}, float half = {0.5}"
    nodes = "k = Exp(each) l = Neg(k) a = Mul(x, l) e = DequantizeLinear(eight, half) f = Neg(e) made = Add(a, f)"
    found, _ = folded(nodes, weights, tmp_path)
    assert found == {"Mul": 1, "DequantizeLinear": 1, "Neg": 1, "Add": 1}  # eight bits stay so in the file


def test_what_a_graph_gives_out_is_made_by_it(tmp_path: Path) -> None:
    """Though it depends on no input."""
    nodes = "k = Exp(all) l = Neg(k) made = Identity(l)"
    found, _ = folded(nodes, f"float[3, 4, 2, 3] all = {{{', '.join(map(str, range(72)))}}}", tmp_path)
    assert found == {"Identity": 1}


def test_weights_stand_in_the_order_of_their_nodes() -> None:
    """So that an export twice is the same file, to the byte."""
    nodes = " ".join(f"k{place} = Exp(each) a{place + 1} = Mul(a{place}, k{place})" for place in range(20))
    model = parsed(f"a0 = Identity(x) {nodes} made = Identity(a20)", "float[4, 1, 1] each = {1, 2, 3, 4}")
    fold_into_weights(model)
    made = [name for name in model.graph.initializers if name != "each"]
    assert made == [f"k{place}@weight" for place in range(20)]


def test_a_body_that_reads_the_input_is_no_weight(tmp_path: Path) -> None:
    branches = "then_branch = a () => (float[batch, 4, 2, 3] t) { t = Neg(x) }, "
    branches += "else_branch = b () => (float[batch, 4, 2, 3] e) { e = Abs(x) }"
    found, _ = folded(f"made = If<{branches}>(yes)", "bool yes = {1}", tmp_path)
    assert found == {"If": 1}


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_attention_is_exported_as_it_is_computed(heads: int, factor: float) -> None:
    torch.manual_seed(0)
    block = UNetBlock(8, 8, BlockStyle(4, 1e-5, factor, True, False, None, heads), attention=True)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, 0.2, 0.5)
    x, names = torch.randn(3, 8, 2, 3), set(block.state_dict())
    with torch.no_grad():
        expected = block.attention(x)
        with attention_joined(torch.nn.Sequential(block)):
            assert set(block.state_dict()) > names
            joined = block.attention(x)
        assert set(block.state_dict()) == names
        assert torch.equal(block.attention(x), expected)
    assert relative(joined.numpy(), expected.numpy()) < 1e-5
    assert expected.std() > 0.1


def test_products_take_no_memory_of_their_own(tmp_path: Path) -> None:
    _, model = folded(f"{SUM} m = Mul(half, s) made = Relu(m)", WEIGHTS, tmp_path)
    products = [one.const_value for one in model.graph.initializers.values() if one.uses()]
    assert [type(one) for one in products] == [ir.LazyTensor] * 3
