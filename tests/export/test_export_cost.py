"""The benchmark of exports measures both of its sides, with conditions and without."""

import pytest

from edge_sampler import models
from edge_sampler.export.export_cost import BARE, measure
from tests.bundles import TINY


@pytest.mark.parametrize("model", ["edm-digits", TINY])
def test_both_sides_are_measured(model: str) -> None:
    loaded = models.load(model)
    bare, whole = measure(loaded, BARE, None), measure(loaded, 2, None)
    assert min(bare["seconds"], whole["seconds"]) > 0
    assert whole["size"] < 1.2
    assert whole["nodes"] > 100
