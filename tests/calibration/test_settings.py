"""Settings check themselves: each number has a least and a largest value."""

import json
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, get_args

import numpy as np
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
    with pytest.raises(UserError, match=f"^{told} is {least - 1}; it must be at least {least}$"):
        given(**{name: least - 1})
    assert getattr(given(**{name: most}), name) == most
    with pytest.raises(UserError, match=f"^{told} is {most + 1}; it must be at most {most:,}$"):
        given(**{name: most + 1})


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_a_value_of_another_type_is_refused(field: Any) -> None:
    odd: dict[Any, list[Any]] = {
        int: [1.5, float("nan"), "3", True, [1]],
        float: ["1", True],
        bool: ["no", 1],
        str: [5, b"a"],
    }
    kind, *none = get_args(field.type) or (field.type,)
    for wrong in odd[kind] + [None] * (not none and field.default is not None):
        with pytest.raises(UserError, match=f"^{field.name} is .*; it must be .*(number|text|true or false)"):
            replace(USUAL, **{field.name: wrong})


def test_numbers_of_numpy_become_pythons() -> None:
    settings = Settings(np.int64(3), seed=np.uint8(1), ridge=np.float32(0.5), afs=np.False_)  # type: ignore[arg-type]
    assert json.loads(json.dumps(asdict(settings))) == asdict(Settings(3, seed=1, ridge=0.5, afs=False))


def test_every_count_has_bounds() -> None:
    counts = {field.name for field in fields(Settings) if field.type in (int, "int", float, "float")}
    assert counts - {"temperature"} == set(BOUNDS)


def test_an_rms_error_has_four_times_the_noises() -> None:
    numbers = [Settings(5, refine=2, refine_error=error) for error in ("mean", "rms")]
    assert [(one.fit_batch, one.heldout) for one in numbers] == [(256, 128), (1024, 512)]
    assert Settings(5, refine_error="rms", fit_batch=8).fit_batch == 8
    with pytest.raises(UserError, match=r"^unknown refine-error 'median'; known: mean, rms$"):
        replace(USUAL, refine_error="median")


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_is_above_zero_and_finite(temperature: Any) -> None:
    with pytest.raises(UserError, match="it must be above 0 and finite"):
        replace(USUAL, temperature=temperature)
