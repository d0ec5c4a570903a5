"""Conditions and named axes: what fits is taken as it was meant, and what does not is one clear line."""

import json
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sampler.runtime.condition import MOST_VALUES, Axis, Condition, class_labels, parse_sizes, sizes_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import TAKEN, Inputs, Output
from edge_sampler.runtime.sampler import Sampler
from edge_sampler.runtime.text import Text

TEXT = Text("tokenizer.json", "")
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


def test_one_for_each_seed_is_not_two_for_three() -> None:
    for rows in (1, 3):
        values, _ = INPUTS.check(fitting(rows, 3) | {"class_labels": [4] * rows}, 3)
        assert values["class_labels"].tolist() == [4, 4, 4]
        assert values["memory"].shape == (3, 3, 3)
    with pytest.raises(UserError, match="one or 3, one for each seed"):
        INPUTS.check(fitting(2, 3), 3)


def test_every_class_is_taken_and_no_other() -> None:
    told = Inputs((1,), class_labels(5))
    assert told.check({"class_labels": [0, 1, 4, -1]}, 4)[0]["class_labels"].tolist() == [0, 1, 4, -1]
    for classes, wrong in ((class_labels(5, None), -1), (class_labels(5, None), 5), (class_labels(5, 7), 6)):
        with pytest.raises(UserError, match=f"holds {wrong}, which is out of range"):
            Inputs((1,), classes).check({"class_labels": wrong}, 1)
    assert Inputs((1,), class_labels(5, 7)).check({"class_labels": 7}, 1)[0]["class_labels"] == 7
    assert class_labels(0) == {}


@pytest.mark.parametrize("limits", [{"choices": 5}, {"ids": 5}], ids=str)
def test_numbers_that_count_are_whole(limits: dict[str, Any]) -> None:
    level = Inputs((1,), {"level": Condition((2,), null=0.5, **limits)})
    assert level.check({"level": [3.0, 0.5]}, 1)[0]["level"].tolist() == [[3.0, 0.5]]
    with pytest.raises(UserError, match=r"level holds 3\.5, which is out of range"):
        level.check({"level": [1, 3.5]}, 1)


def test_an_axis_may_have_a_step() -> None:
    inputs = Inputs((3, "height"), {"image": Condition(("height",))}, {"height": Axis(8, 16, 64, 8)})
    assert inputs.record()["axes"] == {"height": [8, 16, 64, 8]}
    assert Inputs.read(inputs.record()) == inputs
    assert inputs.check({"image": np.zeros(24)}, 1)[1] == {"height": 24}
    for size in (12, 72):
        with pytest.raises(UserError, match=f"image has {size} of height; this sampler takes 8 to 64 in steps of 8"):
            inputs.check({"image": np.zeros(size)}, 1)
    assert "in steps" not in str(Axis(1, 2, 3))
    assert Axis.read((np.int64(8), 16, 64, np.int32(8))) == inputs.axes["height"]
    assert Axis.read([1, 2, 3]).record() == [1, 2, 3]


def test_a_condition_may_have_several_values_for_each_place() -> None:
    conditions = {"image": Condition((3, "8*height")), "mask": Condition(("height",), "bool")}
    inputs = Inputs((4, "height"), conditions, {"height": Axis(4, 8, 16, 4)})
    assert Inputs.read(inputs.record()) == inputs
    mask = np.ones(12, bool)
    assert inputs.check({"image": np.zeros((3, 96)), "mask": mask}, 1)[1] == {"height": 12}
    for size, message in (
        (90, r"image has 90 of 8\*height, which is no multiple of 8"),
        (160, r"image has 160 of 8\*height, which is height 20; this sampler takes 4 to 16 in steps of 4"),
        (64, "mask has 12 of height, and another condition has 8"),
    ):
        with pytest.raises(UserError, match=message):
            inputs.check({"image": np.zeros((3, size)), "mask": mask}, 1)
    assert sizes_of((3, "8*height"), (3, 96)) == {"height": 12}
    with pytest.raises(UserError, match=r"axis 'width' has no sizes"):
        Inputs((4, "height"), {"image": Condition(("8*width",))}, inputs.axes)
    with pytest.raises(UserError, match=r"the data's shape has '2\*height'; only conditions and outputs"):
        Inputs((4, "2*height"), {}, inputs.axes)


def test_an_axis_that_no_condition_sizes_is_given_by_its_name_or_usual() -> None:
    inputs = Inputs(("length",), {}, {"length": Axis(1, 4, 9)})
    assert inputs.check({}, 1)[1] == {"length": 4}
    assert inputs.check({"length": 9}, 1)[1] == {"length": 9}
    with pytest.raises(UserError, match="length is 10; this sampler takes 1 to 9"):
        inputs.check({"length": 10}, 1)


def test_sizes_that_make_too_many_values_are_refused_before_any_is_made() -> None:
    inputs = Inputs((2**20, "length"), {}, {"length": Axis(1, 4, MOST_VALUES)})
    assert inputs.check({"length": 256}, 1)[1] == {"length": 256}
    with pytest.raises(UserError, match=rf"\[1048576, 257\] are more than {MOST_VALUES} values of one sample"):
        inputs.check({"length": 257}, 1)


class Unreadable:
    """As a tensor of PyTorch that has gradients."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise RuntimeError("it needs gradients")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": None}, r"memory is missing: give float32 \[rows, 3\].*--condition memory="),
        ({"memry": 1}, "unknown condition 'memry' .did you mean 'memory'"),
        ({"prompt": 1}, "unknown condition 'prompt': this sampler takes memory, mask, class_labels, length, rows"),
        ({"mask": np.ones((2, 6), np.float32)}, r"mask is float32; mask must be bool \[length\]"),
        ({"memory": np.zeros((2, 3, 4))}, r"memory has shape \[2, 3, 4\]; memory must be float32 \[rows, 3\]"),
        ({"memory": np.zeros((3, 3, 3))}, r"memory has shape \[3, 3, 3\]"),
        ({"memory": np.zeros(3)}, r"memory has shape \[3\]"),
        ({"memory": np.zeros((1, 2, 3, 3))}, r"memory has shape \[1, 2, 3, 3\]"),
        ({"memory": np.zeros((2, 5, 3))}, "memory has 5 of rows; this sampler takes 1 to 4"),
        ({"memory": np.full((2, 3, 3), np.nan)}, "memory holds NaN"),
        ({"length": 7}, "length is 7, and another condition has 6"),
        (
            {"class_labels": [0, 5]},
            r"class_labels holds 5, which is out of range; .* int64 \[\], 0 to 4 or -1, one or 2",
        ),
        ({"class_labels": [-2, 4]}, "class_labels holds -2"),
        ({"class_labels": [0.0, 1.0]}, "class_labels is float64"),
        ({"class_labels": True}, "class_labels is bool"),
        ({"memory": [[1.0], [1.0, 2.0]]}, "memory has rows of several lengths; memory must be"),
        ({"memory": np.ma.masked_less(np.arange(6.0).reshape(2, 3), 2)}, "memory has masked entries: fill them"),
        ({"memory": [[True, 2.0]] * 3}, r"memory is no array that NumPy reads \(booleans among numbers\)"),
        ({"memory": Unreadable()}, r"memory is no array that NumPy reads \(it needs gradients\)"),
        ({"memory": np.full((2, 3, 3), 1e39)}, r"memory holds 1e\+39, which is beyond float32"),
        ({"memory": np.full((3, 3), -1e300)}, r"memory holds -1e\+300, which is beyond float32"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        INPUTS.check(fitting() | change, 2)


@pytest.mark.parametrize("value", [2**63, np.array([2**63 + 5, 1], np.uint64), np.uint64(2**64 - 1)])
def test_a_whole_number_beyond_int64_is_told(value: Any) -> None:
    """NumPy would wrap it to another."""
    inputs = Inputs((1,), {"k": Condition((), "int64")})
    with pytest.raises(UserError, match=r"k holds \d+, which is beyond int64"):
        inputs.check({"k": value}, 2)
    assert inputs.check({"k": np.uint64(2**63 - 1)}, 2)[0]["k"].tolist() == [2**63 - 1] * 2


def test_json_keeps_them() -> None:
    assert Inputs.read(INPUTS.record()) == INPUTS
    assert Inputs.read(INPUTS.record()).conditions["class_labels"].null == -1
    assert INPUTS.record()["conditions"]["memory"]["null"] == 0.0
    assert Condition((2,), null=np.zeros(2)).record()["null"] is True
    assert Condition(description="5\u00a0°C, 👩‍🚀").description.startswith("5")
    numbers = Condition((np.int64(2),), "int64", null=np.int64(-1))
    assert json.loads(json.dumps(numbers.record())) == Condition((2,), "int64", null=-1).record()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis(3, 2, 4), "sizes 3, 2, 4; they must be at least 1, and in order"),
        (lambda: Condition((), "float64"), "dtype is 'float64'; allowed: float32, int64, bool"),
        (lambda: Inputs(("T",)), "axis 'T' has no sizes"),
        (lambda: Inputs((1,), {"noise": Condition()}), "called 'noise', which is taken"),
        (lambda: Inputs((1,), {"temperature": Condition()}), "called 'temperature', which is taken"),
        *(
            (partial(make, name), f"called '{name}', which is taken")
            for name in ("seed", "self", "allow_pickle", "binary_data_output")
            for make in (
                lambda name: Inputs((1,), {name: Condition()}),
                lambda name: Inputs((1,), {}, {name: Axis(1, 1, 1)}),
                Output,
            )
        ),
        (lambda: Inputs((1,), {"x_0": Condition()}), "called 'x_0', which is taken"),
        (lambda: Output("denoised_12"), "called 'denoised_12', which is taken"),
        (lambda: Condition("ab"), "shape is 'ab'; it must be a tuple"),  # type: ignore[arg-type]
        (lambda: Condition(5), "shape is 5; it must be a tuple"),  # type: ignore[arg-type]
        (lambda: Output("x"), "an output is called 'x', which is taken: give it another name"),
        (lambda: Output(units="m\n"), r"units are 'm\\n'; they must be a line of text"),
        (lambda: Output(units=5), "units are 5; they must be a line of text"),  # type: ignore[arg-type]
        (lambda: Output(None), "called None; it must be a word"),  # type: ignore[arg-type]
        *(
            (partial(Condition, description=odd), "description is .*; it must be a line of text")  # type: ignore[arg-type]
            for odd in (None, 5, "a\nb", "\x1b[31mred", "\udc80", 100_000 * "a")
        ),
        (lambda: Axis(0, 1, 1), "must be at least 1, and in order"),
        (lambda: Axis(4.0, 8, 14), "sizes 4.0, 8, 14 and a step of 1; they must be whole numbers"),  # type: ignore[arg-type]
        (lambda: Axis(True, 8, 14), "they must be whole numbers"),
        (lambda: Axis(4, 8, 16, 2.0), "and a step of 2.0; they must be whole numbers"),  # type: ignore[arg-type]
        *(
            (lambda odd=odd: Axis.read(odd), "it needs its least, usual and largest size, and its step")
            for odd in ((4, 8), (4, 8, 16, 2, 1), 5, "4:8", None, {"least": 4})
        ),
        (lambda: Axis.read(["4", 8, 16]), "they must be whole numbers"),
        (lambda: Axis(8, 8, MOST_VALUES + 8), f"an axis has a size or a step above {MOST_VALUES}"),
        (lambda: Axis.read([8, 8, 10**5000]), "has a size or a step above"),
        (lambda: Axis(4, 8, 14, 4), "sizes 4, 8, 14 and a step of 4; they must be multiples of it"),
        (lambda: Axis(4, 6, 12, 4), "must be multiples"),
        (lambda: Axis(4, 8, 12, 0), "must be multiples"),
        (lambda: Axis(1, 3, 2), "must be at least 1, and in order"),
        (lambda: Condition((), "int64", choices=-1), "has -1 choices"),
        (lambda: Condition((), "int64", choices=2**63), "below 2.63"),
        (lambda: Condition((), "int64", choices=10**400), "has 10{39} choices; it must be"),
        (lambda: Condition((), "int64", choices=0.7), "has 0.7 choices"),  # type: ignore[arg-type]
        (lambda: Condition((), "int64", choices=True), "has True choices"),
        (lambda: Condition((), "int64", ids=-1), "has -1 ids"),
        (lambda: Inputs((0,)), f"a shape has the size 0; it must be 1 to {MOST_VALUES}, or an axis"),
        (lambda: Inputs((True,)), "a shape has the size True"),
        (lambda: Inputs((4.0,)), "a shape has the size 4.0"),  # type: ignore[arg-type]
        (lambda: Inputs((MOST_VALUES + 1,)), f"a shape has the size {MOST_VALUES + 1}"),
        (lambda: Inputs((MOST_VALUES, 2)), "are more than .* values of one sample"),
        (lambda: Inputs((1,), {"T": Condition()}, {"T": Axis(1, 1, 1)}), "called 'T', as an axis is"),
        (lambda: Inputs((1,), {}, {"batch": Axis(1, 1, 1)}), "an axis is called 'batch', which is taken"),
        (lambda: Inputs((1,), {}, {"a b": Axis(1, 1, 1)}), "an axis is called 'a b'; it must be a word"),
        *(
            (lambda name=name: Inputs((1,), {name: Condition()}), "a condition is called .*; it must be a word")
            for name in ("", "a b", "../a", "/etc/a", "a..b", ".a", "a.", "-a", "1")
        ),
        (lambda: Inputs((1,), {"m": Condition(null=10**400)}), r"has a null 10{39}, which is no float32 of shape \(\)"),
        (lambda: Inputs((1,), {"m": Condition((2,), "bool", null=2)}), "has a null 2, which is no bool"),
        (lambda: Inputs((1,), {"k": Condition((), "int64", null=0.5)}), "has a null 0.5, which is no int64"),
        (lambda: Inputs((1,), {"k": Condition((), "int64", null=2.0**63)}), "which is no int64"),
        (lambda: Inputs((1,), {"a": Condition((2,), null=[0, 1e39])}), "which is no float32"),
        (lambda: Condition((4,), "float32", text=TEXT), r"is int64 \[length\], .* not text or float32 \[4\]"),
        (lambda: Condition((), "int64", text=TEXT), "is int64"),
        (lambda: Condition((4, 4), "int64", text=TEXT), "is int64"),
        (lambda: Condition(("T",), "int64", text=TEXT), "is int64"),
        (lambda: parse_sizes("1:4"), "size '1:4' is neither a number nor MIN:OPT:MAX"),
        (lambda: parse_sizes("1:2:3:4"), "neither"),
        (lambda: parse_sizes("-1"), "neither"),
        (lambda: Output("seeds"), "an output is called 'seeds'"),
        (lambda: Output("a b"), "an output is called 'a b'"),
        (lambda: Output("noise"), "an output is called 'noise'"),
        (lambda: Inputs(("a b",), axes={"a b": Axis(1, 2, 3)}), "an axis is called 'a b'; it must be a word"),
    ],
)
def test_what_cannot_be_declared(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_what_functions_take_is_taken() -> None:
    """``Sampler.sample`` and ``np.savez`` are given values by name, beside their own arguments."""
    for function in (Sampler.sample, np.savez):
        told = signature(function).parameters.values()
        assert {one.name for one in told if one.kind is one.POSITIONAL_OR_KEYWORD or one.kind is one.KEYWORD_ONLY} <= {
            *TAKEN
        }


@pytest.mark.parametrize("dtype", ["bool", "int64"])
@pytest.mark.parametrize("null", [True, False])
def test_a_null_that_is_true_is_recorded_as_a_number(null: bool, dtype: str) -> None:
    """A manifest's true stands for an array that it does not hold."""
    recorded = json.loads(json.dumps(Condition((), dtype, null=null).record()))
    assert type(recorded["null"]) is int
    assert Condition.read(recorded).null == null
    assert Condition((2,), dtype, null=np.array([null, False])).record()["null"] is True


def test_what_can_be_declared_at_the_limits() -> None:
    assert parse_sizes("8") == (8, 8, 8)
    assert parse_sizes("1:4:16") == (1, 4, 16)
    assert Axis.parse("3").sizes == (3, 3, 3)
    with pytest.raises(UserError, match="is neither a number nor MIN:OPT:MAX"):
        Axis.parse("9" * 5000)
    assert Condition((), "int64", choices=2**63 - 1).wanted() == f"int64 [], 0 to {2**63 - 2}"
    assert Condition((), "int64", choices=9, ids=5, null=4).wanted() == "int64 [], 0 to 4"
    assert Condition((), "int64", choices=3, ids=5, null=4).wanted() == "int64 [], 0 to 2 or 4"
    assert Condition((2, "T")).wanted() == "float32 [2, T]"
    assert Condition((4,), "int64", text=TEXT).wanted() == "text or int64 [4]"
    assert Inputs((np.int64(1), MOST_VALUES)).sized() == (1, MOST_VALUES)


def test_pictures_are_grey_or_colour() -> None:
    assert [Output(shape=shape).is_image for shape in ((1, 4, 4), (3, 4, 5), (2, 4, 4), (3, 4), (3, 4, 4, 4))] == [
        True, True, False, False, False
    ]  # fmt: skip
    assert Output("actions_2").name == "actions_2"


def test_sizes_are_those_of_the_names() -> None:
    assert sizes_of(("a", 3, "b"), (2, 3, 5)) == {"a": 2, "b": 5}
    with pytest.raises(ValueError, match="zip"):
        sizes_of(("a",), (1, 2))
