"""Arguments that no network can have are refused by their names, before anything is built."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from edge_sampler.models.architecture import build
from edge_sampler.models.arguments import BETWEEN, check_plain, check_product, check_types, preconditioning_of
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.errors import UserError

TINY = {
    "precond": "EDMPrecond", "model_type": "SongUNet", "img_resolution": 8, "img_channels": 1, "label_dim": 2,
    "model_channels": 8, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": [],
}  # fmt: skip


class Taking:
    def __init__(
        self, width: int, label_dim: int = 0, rate: float = 0.0, mult: tuple[float, ...] = (), kind: str = "",
        flag: bool = False, heads: int | None = None, other: Any = None,
    ) -> None:  # fmt: skip
        pass


@pytest.mark.parametrize(
    ("name", "fitting", "others", "told"),
    [
        ("width", [1, np.int64(3)], [0, -1, True, 1.0, "1", None], "a whole number, 1 or more"),
        ("label_dim", [0, 1], [-1, False, 0.5], "a whole number, 0 or more"),
        ("rate", [0, -1, 0.5, math.inf, np.float32(1)], [True, "1", None, [1]], "a number"),
        ("mult", [[], (1, 2.5)], ["12", 1, [True], [[1]], {"a": 1}, None], "a list, each a number"),
        ("kind", ["", "a"], [1, None, ["a"]], "a text"),
        ("flag", [True, False], [0, 1, "no", None], "true or false"),
        ("heads", [None, 1], [0, True, "1"], "a whole number, 1 or more or null"),
        ("other", [None, 1, "a"], [], ""),
        ("unknown", [None, 1, "a"], [], ""),
    ],
)
def test_an_argument_is_of_the_type_that_the_network_says(
    name: str, fitting: list[Any], others: list[Any], told: str
) -> None:
    for value in fitting:
        check_types({name: value}, Taking)
    for value in others:
        with pytest.raises(ValueError, match=f"^{name} is .*; it must be {told}$"):
            check_types({name: value}, Taking)


@pytest.mark.parametrize(
    ("name", "most"), [("width", 2**24), ("num_blocks", 256), ("layers_per_block", 256), ("label_dim", 2**16)]
)
def test_numbers_have_bounds_by_their_names(name: str, most: int) -> None:
    for value in (most, -most, math.inf):
        check_plain({name: value})
    for value in (most + 1, -most - 1):
        with pytest.raises(ValueError, match=f"{name} is larger than {most}, beyond any network's"):
            check_plain({name: [value]})


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": {3: 1}}, "a has a name that is no text"),
        ({"a": [b"1"]}, "a is a bytes; allowed are texts, numbers"),
        ({"a": [[1] * 4096]}, "a makes more than 4096 values"),
    ],
)
def test_what_is_no_plain_value_is_refused(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_plain(value)


def test_all_values_count() -> None:
    assert check_plain([1, "a", None, [2.5, True], {"b": 3}]) == 4096 - 8
    assert check_plain([1] * 4095) == 1
    check_product({"num_blocks": 64, "channel_mult": [1] * 64, "resolutions": [8]})
    with pytest.raises(ValueError, match="65 levels of 64 blocks make more than 4096"):
        check_product({"num_blocks": 64, "channel_mult": [1] * 65, "resolutions": [8]})


@pytest.mark.parametrize(
    ("precond", "name", "fitting", "others"),
    [
        ("EDMPrecond", "sigma_data", [1e-5, 0.5, 100], [0, -1, math.inf, math.nan, 1e-308]),
        ("VPPrecond", "beta_d", [0.1, 19.9], [0, -19.9, 1e6]),
        ("VPPrecond", "beta_min", [0.1], [0, -1]),
        ("VPPrecond", "epsilon_t", [1e-5], [0, -1, 1, 2]),
        ("VPPrecond", "M", [2, 1000], [1, 2**24]),
        ("DDPMPrecond", "num_train_timesteps", [10, 4000], [2**24]),
        ("DDPMPrecond", "beta_start", [1e-4], [0, -1, 1]),
        ("DDPMPrecond", "beta_end", [0.02, 0.999], [0, 1, 2]),
        ("iDDPMPrecond", "C_1", [0.001], [0, 1, 2]),
        ("iDDPMPrecond", "C_2", [0.008], [0, -0.008, 1]),
        ("FlowPrecond", "num_train_timesteps", [1, 1000.0], [0, -1, math.inf]),
    ],
)
def test_numbers_of_a_preconditioning_have_bounds(
    precond: str, name: str, fitting: list[float], others: list[float]
) -> None:
    for value in fitting:
        coefficients = preconditioning_of(precond, {name: value}).coefficients(torch.tensor([1.0]))
        assert torch.isfinite(torch.as_tensor(coefficients.c_noise)).all(), value
    for value in others:
        with pytest.raises(ValueError, match=f"{name} is .*; it must be above .* and below "):
            preconditioning_of(precond, {name: value})


def test_every_bound_is_of_an_argument_that_exists() -> None:
    known = {name for make in PRECONDITIONINGS.values() for name in make.__annotations__}
    assert set(BETWEEN) <= known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label_dim": True}, "label_dim is True; it must be a whole number, 0 or more"),
        ({"patch": -1}, "patch is -1; it must be a whole number, 1 or more"),
        ({"label_dropout": "x"}, "label_dropout is 'x'; it must be a number"),
        ({"sigma_max": None}, "sigma_max is None; it must be a number"),
        ({"precond": "FlowPrecond", "reversed_time": "no"}, "reversed_time is 'no'; it must be true or false"),
        ({"label_dim": 2**24}, "label_dim is larger than 65536"),
        ({"img_channels": 2**20}, "it has 67,108,864 values in a sample"),
        ({"img_resolution": 2**12}, "it has 16,777,216 values in a sample"),
        ({"img_resolution": 2**11, "model_channels": 256}, "values in one layer's answer"),
        ({"out_channels": 2**24}, "values in one layer's answer"),
        ({"model_channels": 2**14}, "it has [0-9,]{13,} parameters"),
        ({"channel_mult_emb": 2**24}, "channel_mult_emb is larger than 256"),
        ({"channel_mult_noise": 2**24}, "channel_mult_noise is larger than 256"),
        ({"channel_mult": [2**24]}, "channel_mult is larger than 256"),
    ],
)
def test_what_nobody_has_is_refused_before_it_takes_memory(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^tiny: unusable architecture .*{message}"):
        build({**TINY, **change}, "tiny")
