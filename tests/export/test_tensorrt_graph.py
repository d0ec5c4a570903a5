"""What TensorRT gets back of a group norm: exactly that becomes one node, and what is only nearly so is left alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.lower import drop_unused, lower_group_norm, multiply_and_add
from edge_sampler.export.tensorrt_graph import raise_group_norm, widen_scalars
from tests.conftest import relative
from tests.export.test_lower_parts import SCALE, count, group_norm, images, made_by, parsed

LOWERED = {  # a group norm of two groups, as ``lower_group_norm`` leaves it
    "to": "int64[3] to = {0, 2, 12}",
    "back": "int64[4] back = {0, 4, 2, 3}",
    "ones": f"float[12] ones = {{{', '.join('1' * 12)}}}",
    "scale": "float[4] scale = {1, -2, 0.5, 3}",
    "bias": "float[4] bias = {0, 1, -1, 2}",
    "mean": "float[4] mean = {0, 0, 0, 0}",
    "variance": "float[4] variance = {0.75, 0.75, 0.75, 0.75}",
}
AFFINE = "made = BatchNormalization<epsilon = 0.25>(r, scale, bias, mean, variance)"
NODES = f"""g = Reshape(x, to) n = LayerNormalization<axis = 2, epsilon = 0.001>(g, ones) r = Reshape(n, back)
    {AFFINE}"""


OTHERS = {  # what is only nearly a group norm of images
    "one group": {"to": "int64[3] to = {0, 1, 24}", "ones": f"float[24] ones = {{{', '.join('1' * 24)}}}"},
    "scales of its own": {"ones": f"float[12] ones = {{{', '.join('1' * 11)}, 2}}"},
    "part of a channel": {"to": "int64[3] to = {0, 8, 3}", "ones": "float[3] ones = {1, 1, 1}"},
    "groups of two axes": {
        "to": "int64[4] to = {0, 2, 3, 4}", "axis = 2": "axis = -1", "ones": "float[4] ones = {1, 1, 1, 1}"
    },
    "a bias within": {"(g, ones)": "(g, ones, ones)"},
    "another shape": {
        "back": "int64[4] back = {0, 4, 3, 2}",
        "made = B": "k = B",
        "variance)": "variance) made = Transpose<perm = [0, 1, 3, 2]>(k)",
    },
    "ones that are computed": {"g = Reshape": "k = Abs(ones) g = Reshape", "(g, ones)": "(g, k)"},
    "groups that are computed": {"g = Reshape(x, to)": "k = Abs(to) g = Reshape(x, k)"},
    "groups of half a sample": {
        "to": "int64[3] to = {-1, 2, 6}", "back": "int64[4] back = {-1, 4, 2, 3}",
        "ones": "float[6] ones = {1, 1, 1, 1, 1, 1}",
    },
    "rows of the input": {
        "g = Reshape(x, to) n": "n", "(g, ones)": "(x, ones)", "axis = 2": "axis = -1",
        "ones": "float[3] ones = {1, 1, 1}",
    },
    "something between": {"g = Reshape(x, to)": "k = Reshape(x, to) g = Transpose<perm = [0, 1, 2]>(k)"},
}  # fmt: skip


APART = {  # a group norm, and behind it what is not its scale and bias
    "nothing": {f"r = Reshape(n, back)\n    {AFFINE}": "made = Reshape(n, back)"},
    "read twice": {AFFINE: AFFINE.replace("made", "once") + " made = Mul(once, r)"},
    "a mean": {"mean": "float[4] mean = {0, 0, 1, 0}"},
    "a variance": {"variance": "float[4] variance = {0.75, 0.75, 0.76, 0.75}"},
    "a variance without epsilon": {"<epsilon = 0.25>": ""},
    "a scale that is computed": {AFFINE: "k = Abs(scale) " + AFFINE.replace("scale", "k")},
    "a product of the state": {
        "scale": "float[4, 1, 1] scale = {1, -2, 0.5, 3}", "bias": "float[4, 1, 1] bias = {0, 1, -1, 2}",
        AFFINE: "k = Mul(r, x) made = Add(k, bias)",
    },
    "one bias for all": {
        "scale": "float[4, 1, 1] scale = {1, -2, 0.5, 3}", "bias": "float[1, 1, 1] bias = {2}",
        AFFINE: "k = Mul(r, scale) made = Add(k, bias)",
    },
    "a difference": {
        "scale": "float[4, 1, 1] scale = {1, -2, 0.5, 3}", "bias": "float[4, 1, 1] bias = {0, 1, -1, 2}",
        AFFINE: "k = Mul(r, scale) made = Sub(k, bias)",
    },
}  # fmt: skip


@pytest.mark.parametrize("images_alone", [True, False])
def test_a_scale_and_a_bias_may_be_two_nodes(images_alone: bool, tmp_path: Path) -> None:
    """For types that ONNX Runtime has no BatchNormalization of; graphs of earlier versions have them too."""
    model = lowered({})
    if not images_alone:
        model = parsed("made = GroupNormalization<num_groups = 2, epsilon = 0.5>(x, scale, bias)", SCALE)
        lower_group_norm(model)
        ShapeInferencePass()(model)
    expected = made_by(model, tmp_path, x=images())
    multiply_and_add(model.graph)
    assert count(model) == {"Reshape": 2, "LayerNormalization": 1, "Mul": 1, "Add": 1}
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-6
    raise_group_norm(model.graph)
    assert count(model) == {"GroupNormalization": 1}
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5


def test_only_a_scale_and_a_bias_are_two_nodes() -> None:
    model = lowered({"mean": "float[4] mean = {0, 0, 1, 0}"})
    multiply_and_add(model.graph)
    assert count(model)["BatchNormalization"] == 1


@pytest.mark.parametrize("kind", APART)
def test_what_follows_a_group_norm_stays(kind: str, tmp_path: Path) -> None:
    model = lowered(APART[kind])
    before, expected = count(model), made_by(model, tmp_path, x=images())
    raise_group_norm(model.graph)
    assert count(model) == before - Counter(Reshape=2, LayerNormalization=1) + Counter(GroupNormalization=1)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5


def lowered(change: dict[str, str]) -> ir.Model:
    """NODES with LOWERED, changed."""
    nodes = NODES
    for old, new in change.items():
        nodes = nodes.replace(old, new) if old not in LOWERED else nodes
    return parsed(
        nodes, ", ".join({**LOWERED, **{name: new for name, new in change.items() if name in LOWERED}}.values())
    )


@pytest.mark.parametrize("kind", ["", *OTHERS])
def test_only_a_group_norm_of_images_is_raised(kind: str, tmp_path: Path) -> None:
    model = lowered(OTHERS.get(kind, {}))
    expected = made_by(model, tmp_path, x=images())
    raise_group_norm(model.graph)
    assert count(model)["GroupNormalization"] == (not kind)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5
    if not kind:
        assert relative(expected, group_norm(images(), 2, 0.001)) < 1e-5


def test_scalars_have_as_many_dimensions_as_what_they_change(tmp_path: Path) -> None:
    model = parsed(
        "a = Mul(x, s) b = Add(one, a) c = Mul(b, each) made = Sub(c, s)",
        "float s = {2}, float[1] one = {3}, float[4, 1, 1] each = {1, 2, 3, 4}",
    )
    expected = made_by(model, tmp_path, x=images())
    widen_scalars(model.graph)
    shapes = [
        [len(value.shape) for value in node.inputs if value is not None and value.shape is not None]
        for node in model.graph
    ]
    assert shapes == [[4, 4], [4, 4], [4, 3], [4, 0]]
    np.testing.assert_array_equal(made_by(model, tmp_path, x=images()), expected)
    drop_unused(model.graph)
    assert "one" not in model.graph.initializers
    assert "each" in model.graph.initializers
    assert all(value.shape is None for node in list(model.graph)[:-1] for value in node.outputs)
