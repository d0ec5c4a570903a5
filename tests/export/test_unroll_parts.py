"""Denoisers of a few nodes, unrolled: the graph makes what the loop makes, and a shift joins its convolution's bias."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import add_shifts_to_biases, unroll
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import relative

INITIALIZERS = """float[2, 2, 1, 1] w = {0.5, -0.25, 1, 0.75}, float[2] b = {0.125, -0.5}, float[2] two = {-1, 0.25},
    int64[3] axes = {0, 2, 3}, float[1, 2, 1, 1] v = {0.5, -2}, float[1, 1, 1, 1] one = {0.25},
    float[1, 2, 3, 3] each = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8}"""
KINDS = {  # and whether the shift joins the bias
    "a shift": ("c = Conv(x, w, b) shift = Mul(v, sigma) s = Add(c, shift)", True),
    "a shift first": ("shift = Mul(v, sigma) c = Conv(x, w, b) s = Add(shift, c)", True),
    "no bias": ("shift = Mul(v, sigma) c = Conv(x, w) s = Add(c, shift)", True),
    "two in a row": (
        "shift = Mul(v, sigma) c = Conv(x, w, b) h = Add(c, shift) k = Conv(h, w) s = Add(shift, k)",
        True,
    ),
    "one for two convolutions": (
        "shift = Mul(v, sigma) c = Conv(x, w, b) h = Add(c, shift) k = Conv(h, w, two) s = Add(shift, k)",
        True,
    ),
    "a shift that a convolution makes": (
        "e = Mul(v, sigma) shift = Conv(e, w) c = Conv(x, w, b) s = Add(shift, c)",
        True,
    ),
    "of all samples together": ("shift = ReduceMean(x, axes) c = Conv(x, w, b) s = Add(c, shift)", False),
    "a convolution that is read twice": ("shift = Mul(v, sigma) c = Conv(x, w) h = Add(c, shift) s = Mul(h, c)", False),
    "of the state": ("shift = GlobalAveragePool(x) c = Conv(x, w, b) s = Add(c, shift)", False),
    "one for all channels": ("shift = Mul(one, sigma) c = Conv(x, w, b) s = Add(c, shift)", False),
    "one for each place": ("shift = Mul(each, sigma) c = Conv(x, w, b) s = Add(c, shift)", False),
    "no convolution": ("shift = Mul(v, sigma) c = Tanh(x) s = Add(c, shift)", False),
}
PLANS = {
    "plain": Plan("a", (4.0, 1.0, 1.0), ((4.0,), (1.0, 0.5), (0.0, -0.5, 1.5), (0.0, 0.25, 0.0, 0.75))),
    "mean": Plan("a", (4.0,), ((4.0, 0.5), (0.5, -0.25, 1.0)), mean=tuple(((0.5,) * 3,) * 3 for _ in range(2))),
    "clip": Plan("a", (4.0, 1.0), ((4.0,), (0.5, 1.0, 0.5), (0.0, 0.5, -1.0, 1.0, 2.0)), clip=0.5),
    "nothing": Plan("a", (4.0,), ((4.0,), (0.0, 2.0))),
}


def denoiser(nodes: str, more: str = "") -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    toy (float[batch, 2, 3, 3] x, float sigma{more}) => (float[batch, 2, 3, 3] denoised) <{INITIALIZERS}>
    {{ {nodes} denoised = Tanh(s) }}"""
    proto = onnx.parser.parse_model(text)
    proto.graph.input[1].type.tensor_type.shape.SetInParent()
    model = ir.serde.deserialize_model(proto)
    ShapeInferencePass()(model)
    return model


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_makes_what_the_loop_makes(kind: str, plan: str, tmp_path: Path) -> None:
    nodes, joins = KINDS[kind]
    model, table = denoiser(nodes), PLANS[plan]
    save_checked(model, tmp_path / "denoiser.onnx")
    drawn = unroll(model, table)
    save_checked(drawn, tmp_path / "sampler.onnx")
    noise = np.random.default_rng(0).normal(size=(5, 2, 3, 3)).astype(np.float32)
    with Session(tmp_path / "denoiser.onnx") as session:

        def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
            return session.run({"x": x, "sigma": np.array(sigma, np.float32)})["denoised"]

        expected = sample(denoise, noise, table)
    with Session(tmp_path / "sampler.onnx") as session:
        assert relative(session.run({"noise": noise})["images"], expected) < 1e-5
    count = Counter(node.op_type for node in drawn.graph)
    evaluations = table.nfe
    assert count["Add"] == (0 if joins else evaluations)
    assert count["Conv"] == evaluations * (nodes.count("Conv") - nodes.count("Conv(e"))  # which is a constant
    assert count["Clip"] == (evaluations if table.clip else 0)
    made = {value.name for node in drawn.graph for value in node.outputs}
    assert {f"{name}_{k}" for name in ("x", "denoised") for k in range(evaluations)} <= made


@pytest.mark.parametrize("name", ["a", "y"])
def test_a_condition_stays_what_it_is(name: str, tmp_path: Path) -> None:
    drawn = unroll(denoiser(f"s = Mul(x, {name})", f", float[batch, 2, 3, 3] {name}"), PLANS["nothing"])
    save_checked(drawn, tmp_path / "sampler.onnx")
    noise, told = np.random.default_rng(0).normal(size=(2, 5, 2, 3, 3)).astype(np.float32)
    with Session(tmp_path / "sampler.onnx") as session:
        found = session.run({"noise": noise, name: told})["images"]
    assert relative(found, 2 * np.tanh(4 * noise * told)) < 1e-5


def test_equal_levels_share_their_biases() -> None:
    drawn = unroll(denoiser(KINDS["a shift"][0]), PLANS["plain"])
    biases = [name for name in drawn.graph.initializers if name.startswith("s_bias@")]
    assert sorted(biases) == ["s_bias@1.0", "s_bias@4.0"]


def test_a_graph_is_left_in_order_and_another_is_left_alone() -> None:
    for nodes, joins in KINDS.values():
        graph = denoiser(nodes).graph
        before = [node.op_type for node in graph]
        add_shifts_to_biases(graph)
        onnx.checker.check_model(ir.to_proto(ir.Model(graph, ir_version=10)))
        assert ([node.op_type for node in graph] == before) == (not joins)
