"""What a study tells of the samples that it judges."""

import numpy as np

from edge_sampler import models
from edge_sampler.calibration.study.measure import captions, interval
from edge_sampler.models.guidance import guided
from edge_sampler.models.zoo import CAPTIONS
from edge_sampler.runtime.text import tokens


def test_captions_are_those_that_the_judged_samples_are_told() -> None:
    model = guided(models.load("flow-emoji"), 3.0)
    told = captions(model, 6)
    assert set(told) <= set(CAPTIONS.read_text().splitlines())
    prompt = model.spec.called_with.conditions["prompt"]
    assert prompt.text is not None
    ids = model.draw_raw(range(6), 2, held=True)["prompt"]
    np.testing.assert_array_equal(tokens(told, prompt.text.content, "prompt", 24), ids)
    assert captions(models.load("edm-digits"), 6) == []


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of errors of a known law, squares of normal ones: 19 intervals of 20 hold the RMS."""
    draw = np.random.default_rng(1)
    found = [interval((0.1 * draw.standard_normal(200)) ** 2) for _ in range(300)]
    held = np.mean([low <= 0.1 <= high for low, high in found])
    assert 0.9 < held < 0.98
