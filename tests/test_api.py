"""The functions of edge_sampler/api.py refuse what they cannot do before they do anything."""

from pathlib import Path
from typing import Any

import pytest

import edge_sampler


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"precision": "int3"}, "unknown precision 'int3'; known: fp32, bf16, fp16, fp8, int8"),
        ({"refit": True}, "refit is for fp8, int8, .*, and precision is fp32"),
        ({"flavour": "other"}, "unknown flavour 'other'; known: tensorrt, tensorrt-rtx"),
        ({"batch": "4:2:1"}, "out of order"),
    ],
)
def test_add_engine_refuses_in_one_line(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    """There is no bundle yet, so nothing was read either."""
    with pytest.raises(edge_sampler.UserError, match=says) as refused:
        edge_sampler.add_engine(tmp_path / "none", **arguments)
    assert "\n" not in str(refused.value)
