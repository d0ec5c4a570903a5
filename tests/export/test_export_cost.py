"""The benchmark of exports measures both of its sides, with conditions and without."""

from collections.abc import Callable

import pytest

from edge_sampler.export.export_cost import BARE, measure
from edge_sampler.models.denoiser import Denoiser
from tests.export.networks import convolved, policy


@pytest.mark.parametrize("make", [lambda: convolved(6), policy], ids=["images", "with conditions"])
def test_both_sides_are_measured(make: Callable[[], Denoiser]) -> None:
    model = make()
    bare, whole = measure(model, BARE, None), measure(model, 2, None)
    assert bare.keys() == {"seconds", "memory", "peak"}
    assert whole["size"] < 1.2  # two evaluations share their weights
    assert whole["nodes"] > 20
