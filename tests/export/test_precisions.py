"""The lower precisions: each number that stands for a type is the type's."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_sampler.export import precisions
from edge_sampler.export.precisions import PRECISIONS, QUANTISED
from edge_sampler.export.precisions.base import STATISTICS, Precision, Quantised


def test_every_file_is_a_precision_by_its_name() -> None:
    assert list(PRECISIONS) == ["bf16", "fp16"]
    assert list(QUANTISED) == ["fp8", "int8", "int8+fp16"]
    files = {path.stem.replace("_", "+") for path in Path(precisions.__file__).parent.glob("*.py")}
    assert files == {*PRECISIONS, *QUANTISED, "base", "++init++"}
    for one in (*PRECISIONS.values(), *QUANTISED.values()):
        with pytest.raises(FrozenInstanceError):
            setattr(one, "largest", 1.0)  # noqa: B010


@pytest.mark.parametrize("name", PRECISIONS)
def test_the_largest_number_is_the_types(name: str) -> None:
    one = PRECISIONS[name]
    numbers = one.dtype.numpy()
    assert one.largest == float(ml_dtypes.finfo(numbers).max)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", QUANTISED)
def test_a_scale_makes_the_types_largest_number_of_the_largest_value(name: str) -> None:
    one = QUANTISED[name]
    numbers = one.dtype.numpy()
    bounds = np.iinfo(numbers) if numbers.kind == "i" else ml_dtypes.finfo(numbers)  # type: ignore[no-untyped-call]
    assert one.largest == float(bounds.max)
    assert one.rest in ("fp32", *PRECISIONS)


def test_a_types_first_opset_takes_it_in_convolutions() -> None:
    """By onnx's own list of operators; 0 is as early as may be."""
    for one in PRECISIONS.values():
        name = f"tensor({'float16' if one.dtype == ir.DataType.FLOAT16 else 'bfloat16'})"

        def taken(opset: int, name: str = name) -> bool:
            types = onnx.defs.get_schema("Conv", opset, "").type_constraints
            return any(name in constraint.allowed_type_strs for constraint in types)

        assert taken(max(one.opset, 1))
        assert not one.opset or not taken(one.opset - 1)


def test_what_stays_float32_inside() -> None:
    assert PRECISIONS["fp16"].float32_inside == STATISTICS
    assert set(PRECISIONS["bf16"].float32_inside) > set(STATISTICS)


def test_only_int8_alone_has_results_of_eight_bits() -> None:
    """As ONNX Runtime's kernels ask; engines fuse what follows a convolution."""
    assert {name: (one.rest, one.results) for name, one in QUANTISED.items()} == {
        "fp8": ("fp32", False), "int8": ("fp32", True), "int8+fp16": ("fp16", False)
    }  # fmt: skip


def test_a_new_one_is_plain_unless_told() -> None:
    plain = Precision("toy", ir.DataType.FLOAT16, 1.0)
    assert (plain.float32_inside, plain.opset) == (STATISTICS, 0)
    eight = Quantised("toy", ir.DataType.INT8, 127.0)
    assert (eight.rest, eight.results) == ("fp32", False)
