"""Ranges of eight bits: histograms hold every value, and the point at which one clips errs least."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantise import evaluation_of, layers_of, operands, to_eight_bits
from edge_sampler.export.quantised import feed_to_fit
from edge_sampler.export.ranges import Histogram, clip_points, observe
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError


def test_a_histogram_holds_all_values_however_they_come() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(1000) * size for size in (0.1, 5, 1)]
    histogram, together = Histogram(), Histogram()
    for part in parts:
        histogram.add(part)
        other = Histogram()
        other.add(part)
        together = together.together(other)
    values = np.abs(np.concatenate(parts))
    for one in (histogram, together):
        assert one.counts.sum() == len(values)
        assert one.largest == values.max()
        assert one.counts[: len(one.counts) // 4].sum() == pytest.approx((values < one.top / 4).sum(), abs=9)
    with pytest.raises(UserError, match="NaN or infinity"):
        histogram.add(np.array([1.0, np.nan]))
    with pytest.raises(UserError, match="NaN or infinity"):
        histogram.add(np.array([1.0, np.inf]))


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_clip_point_has_the_least_error(precision: str) -> None:
    """Of values with rare large ones, against every other point, the largest value among them."""
    eight, values = QUANTISED[precision], np.random.default_rng(2).standard_t(4, 100_000)
    histogram = Histogram()
    histogram.add(values)

    def error(largest: float) -> float:
        scale = largest / eight.largest
        return float(np.square(values - scale * to_eight_bits(values / scale, eight).astype(float)).mean())

    best = histogram.best(eight)
    tried = [error(part * np.abs(values).max()) for part in np.linspace(0.1, 1, 91)]
    assert error(best) <= 1.01 * min(tried)
    if precision == "int8":
        assert error(best) < 0.8 * error(float(np.abs(values).max()))


def test_ranges_are_those_of_the_plan_s_own_states(made: Path) -> None:
    """Each evaluation alone finds what the whole sampler computes there."""
    bundle = Bundle.open(made)
    layer = layers_of(ir.load(made / "sampler.onnx").graph)[5]
    names = [str(value.name) for value in operands(layer, QUANTISED["int8"])]
    assert len(names) == 2 * bundle.plan.nfe
    feed = feed_to_fit(bundle, 4096)
    by_evaluation = {k: [name for name in names if evaluation_of(name) == k] for k in range(bundle.plan.nfe)}
    found = observe(bundle, by_evaluation, feed, lambda amount: None)
    with Session(made / "sampler.onnx", names) as session:
        whole = session.run(feed)
    for name in names:
        assert found[name].largest == pytest.approx(np.abs(whole[name]).max(), rel=1e-5)
        assert found[name].counts.sum() == whole[name].size
    assert len(feed["noise"]) == 64
    each, one = (clip_points(found, QUANTISED["int8"], one_scale) for one_scale in (False, True))
    assert len({one[name] for name in names}) == 2
    assert len({each[name] for name in names}) == 2 * bundle.plan.nfe
