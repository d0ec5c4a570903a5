"""Conditions and named axes: what fits is taken as it was meant, and what does not is one clear line."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sampler.runtime.condition import Axis, Condition, class_labels
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs

INPUTS = Inputs(
    ("length", 4),
    {
        "memory": Condition(("rows", 3), null=0.0),
        "mask": Condition(("length",), "bool"),
        **class_labels(5),
    },
    {"length": Axis(2, 8, 32), "rows": Axis(1, 2, 4)},
)


def fitting(count: int = 2, length: int = 6, rows: int = 3) -> dict[str, Any]:
    return {
        "memory": np.zeros((count, rows, 3), np.float32),
        "mask": np.ones((count, length), bool),
        "class_labels": [0] * count,
    }


@given(st.integers(1, 4), st.integers(2, 32), st.integers(1, 4))
def test_what_fits_is_taken_and_gives_the_sizes(count: int, length: int, rows: int) -> None:
    values, sizes = INPUTS.check(fitting(count, length, rows), count)
    assert sizes == {"length": length, "rows": rows}
    assert {name: (array.dtype.name, array.shape) for name, array in values.items()} == {
        "memory": ("float32", (count, rows, 3)),
        "mask": ("bool", (count, length)),
        "class_labels": ("int64", (count,)),
    }
    assert INPUTS.sized(sizes=sizes) == (length, 4)


def test_one_value_serves_every_seed() -> None:
    memory = np.arange(6, dtype=np.float64).reshape(2, 3)
    values, _ = INPUTS.check({"memory": memory, "mask": np.ones(5, bool), "class_labels": -1}, 3)
    np.testing.assert_array_equal(values["memory"], [memory] * 3)
    assert values["class_labels"].tolist() == [-1] * 3


def test_an_axis_that_no_condition_sizes_is_given_by_its_name_or_usual() -> None:
    inputs = Inputs(("length",), {}, {"length": Axis(1, 4, 9)})
    assert inputs.check({}, 1)[1] == {"length": 4}
    assert inputs.check({"length": 9}, 1)[1] == {"length": 9}
    with pytest.raises(UserError, match="length is 10 of length; this sampler takes 1 to 9"):
        inputs.check({"length": 10}, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": None}, r"memory is missing: pass memory=float32 \[rows, 3\]"),
        ({"memry": 1}, "unknown condition 'memry' .did you mean 'memory'"),
        ({"prompt": 1}, "unknown condition 'prompt': this sampler takes memory, mask, class_labels, length, rows"),
        ({"mask": np.ones((2, 6), np.float32)}, r"mask is float32; mask must be bool \[length\]"),
        ({"memory": np.zeros((2, 3, 4))}, r"memory has shape \[2, 3, 4\]; memory must be float32 \[rows, 3\]"),
        ({"memory": np.zeros((3, 3, 3))}, r"memory has shape \[3, 3, 3\]"),
        ({"memory": np.zeros(3)}, r"memory has shape \[3\]"),
        ({"memory": np.zeros((2, 5, 3))}, "memory has 5 of rows; this sampler takes 1 to 4"),
        ({"memory": np.full((2, 3, 3), np.nan)}, "memory holds NaN"),
        ({"length": 7}, "length is 7 of length, and another condition has 6"),
        ({"class_labels": [0, 5]}, "class_labels holds 5, which is out of range"),
        ({"class_labels": [0.0, 1.0]}, "class_labels is float64"),
        ({"class_labels": True}, "class_labels is bool"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        INPUTS.check(fitting() | change, 2)


def test_json_keeps_them() -> None:
    assert Inputs.read(INPUTS.record()) == INPUTS
    assert Inputs.read(INPUTS.record()).conditions["class_labels"].null == -1
    assert INPUTS.record()["conditions"]["memory"]["null"] == 0.0
    assert Condition((2,), null=np.zeros(2)).record()["null"] is True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis(3, 2, 4), "sizes 3, 2, 4; they must be at least 1, and in order"),
        (lambda: Condition((), "float64"), "dtype is 'float64'; allowed: float32, int64, bool"),
        (lambda: Inputs(("T",)), "axis 'T' has no sizes"),
        (lambda: Inputs((1,), {"noise": Condition()}), "called 'noise', which is taken"),
        (lambda: Inputs((1,), {"temperature": Condition()}), "called 'temperature', which is taken"),
    ],
)
def test_what_cannot_be_declared(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
