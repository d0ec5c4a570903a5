"""A group norm's scale and shift: one node where it can be, two for types that have no such node."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.export.lower import lower_group_norm, multiply_and_add, scales_and_shifts
from tests.conftest import relative
from tests.export.test_lower_parts import SCALE, count, images, made_by, parsed

WEIGHTS = f"""{SCALE}, float[4] zeros = {{0, 0, 0, 0}}, float[4] rest = {{0.75, 0.75, 0.75, 0.75}},
    float[4] unit = {{1, 1, 1, 1}}, float[4] uneven = {{0.75, 0.75, 0.75, 0.5}}, float[4] one_off = {{0, 0, 0, 1}},
    float[4] usual = {{0.99999, 0.99999, 0.99999, 0.99999}}"""
AFFINE = "BatchNormalization<epsilon = 0.25>(x, scale, bias, zeros, rest)"


@pytest.mark.parametrize(
    "norm",
    [AFFINE, "BatchNormalization(x, scale, bias, zeros, usual)"],  # whose epsilon ONNX says
)
def test_it_is_a_product_and_a_sum(norm: str, tmp_path: Path) -> None:
    model = parsed(f"a = {norm} b = Abs(a) c = {norm} made = Add(b, c)", WEIGHTS)
    expected = made_by(model, tmp_path, x=images())
    multiply_and_add(model.graph)
    assert count(model) == Counter(Mul=2, Add=3, Abs=1)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-6
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert all(value.shape is not None and value.dtype for node in model.graph for value in node.outputs)


@pytest.mark.parametrize(
    "norm",
    [
        "BatchNormalization<epsilon = 0.25>(x, scale, bias, zeros, unit)",
        "BatchNormalization<epsilon = 0.0001>(x, scale, bias, zeros, unit)",
        "BatchNormalization<epsilon = 0.25004>(x, scale, bias, zeros, rest)",  # 2.6 times the error of float32
        "BatchNormalization<epsilon = 0.25>(x, scale, bias, zeros, uneven)",
        "BatchNormalization<epsilon = 0.25>(x, scale, bias, one_off, rest)",
        "BatchNormalization<epsilon = 0.25>(x, drawn, bias, zeros, rest)",
        "InstanceNormalization<epsilon = 0.25>(x, scale, bias)",
    ],
)
def test_what_does_more_is_none(norm: str, tmp_path: Path) -> None:
    model = parsed(f"drawn = Abs(scale) a = {norm} made = Abs(a)", WEIGHTS)
    assert not any(map(scales_and_shifts, model.graph))
    before = count(model)
    multiply_and_add(model.graph)
    assert count(model) == before


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_older_opsets_have_a_scale_for_each_group(groups: int, tmp_path: Path) -> None:
    scale, bias = (", ".join(digits[:groups]) for digits in ("2314", "5678"))
    weights = f"float[{groups}] scale = {{{scale}}}, float[{groups}] bias = {{{bias}}}"
    model = parsed(f"made = GroupNormalization<num_groups = {groups}, epsilon = 0.001>(x, scale, bias)", weights)
    lower_group_norm(model)
    grouped = images().reshape(3, groups, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + 0.001)
    each = np.array([2, 3, 1, 4])[:groups, None], np.array([5, 6, 7, 8])[:groups, None]
    expected = (normal * each[0] + each[1]).reshape(3, 4, 2, 3)
    assert relative(made_by(model, tmp_path, x=images()), expected) < 1e-5
