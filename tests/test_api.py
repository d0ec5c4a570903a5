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
        ({"batch": 0}, "batch 0 is out of order"),
        ({"precision": "fp16", "max_error": -1}, "max-error is -1; it must be above 0"),
        ({"precision": "fp16", "max_error": float("nan")}, "max-error is nan; it must be above 0"),
        ({"max_error": 0.1}, "max-error bounds what a precision costs: name one, and fp32 costs nothing"),
    ],
)
def test_add_engine_refuses_in_one_line(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    """There is no bundle yet, so nothing was read either."""
    with pytest.raises(edge_sampler.UserError, match=says) as refused:
        edge_sampler.add_engine(tmp_path / "none", **arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"nfe": 2}, "^nfe beside settings: give either"),
        ({"solver": "auto", "refine": 0}, "^solver, refine beside settings: give either"),
        ({"settings": None}, "^give either nfe or settings$"),
        ({"settings": None, "nfe": 0}, "^nfe is 0; it must be at least 1$"),
        ({"settings": {"nfe": 2}}, "^settings is {'nfe': 2}; it must be an object of class Settings"),
        ({}, "^model is None; it must be an object of class Denoiser"),
    ],
)
def test_fit_takes_settings_or_options_of_its_own(arguments: dict[str, Any], says: str) -> None:
    """None is ignored; there is no model yet, so nothing was asked either."""
    settings = edge_sampler.Settings(nfe=2, solver="ddim")
    with pytest.raises(edge_sampler.UserError, match=says):
        edge_sampler.fit(**{"model": None, "settings": settings, **arguments})
