"""Races between samplers outlive one that runs away."""

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.candidates import race
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.scout import SCOUT
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.models.wrapped import Wrapped
from tests.calibration.toys import toy


class Failing(Wrapped):
    """Answers by no numbers at one noise level."""

    level = 0.0

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        return self.model(x, sigma, **conditions) / (torch.as_tensor(sigma).max() != self.level)


def test_a_race_goes_on_where_one_sampler_runs_away() -> None:
    model = Failing(toy())
    noises = to_fit(model, 6, 8, 0)
    fine = solution(noises, (10.0, 2.0, 1.0, 0.5), 16, NO_CACHE)
    schemes = [Scheme(SCOUT, (10.0, level, 0.0), 2, 1) for level in (0.5, 2.0, 1.0)]
    whole = race(schemes, noises, fine)
    model.level = 2.0
    errors = race(schemes, noises, fine)
    assert errors == [whole[0], np.inf, whole[2]]
    assert np.isfinite(whole).all()
