"""Settings check themselves: each number has a least and a largest value."""

from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest

from edge_sampler.calibration.settings import BOUNDS, Settings
from edge_sampler.runtime.errors import UserError

USUAL = Settings(nfe=5)


@pytest.mark.parametrize("name", BOUNDS)
def test_a_number_beyond_its_bounds_is_refused(name: str) -> None:
    least, most = BOUNDS[name]
    told = name.replace("_", "-")
    given: Any = partial(replace, USUAL)
    assert getattr(given(**{name: least}), name) == least
    for wrong in (least - 1, float("nan")):
        with pytest.raises(UserError, match=f"^{told} is {wrong}; it must be at least {least}$"):
            given(**{name: wrong})
    if most < float("inf"):
        assert getattr(given(**{name: most}), name) == most
        with pytest.raises(UserError, match=f"^{told} is {most + 1}; it must be at most {most:,}$"):
            given(**{name: most + 1})


def test_every_count_has_bounds() -> None:
    counts = {field.name for field in fields(Settings) if field.type in (int, "int", float, "float")}
    assert counts - {"temperature"} == set(BOUNDS)


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_above_zero_and_finite(temperature: Any) -> None:
    with pytest.raises(UserError, match="it must be above 0 and finite"):
        replace(USUAL, temperature=temperature)
