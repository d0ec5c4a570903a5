"""Derivatives of final images by a plan's numbers: along principal directions, and of plans that clip."""

import numpy as np
import torch

from edge_sampler.calibration.derivatives import derivatives, directions, principal
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.refinement import parameters, with_parameters
from edge_sampler.runtime.plan import Plan, sample
from tests.calibration.toys import toy


def test_moves_along_principal_directions_stand_for_all_tangents() -> None:
    """However small they are; of more directions than are asked about, what is lost is the least there is."""
    random = torch.Generator().manual_seed(0)
    mixed, shape = torch.randn(20, 10, generator=random, dtype=torch.float64), (3, 1, 8, 8)
    few, many = (torch.randn(count, *shape, generator=random, dtype=torch.float64) for count in (10, 20))
    tangents = torch.einsum("pk,kn...->pn...", mixed, few) * torch.logspace(-6, 3, 20).view(-1, 1, 1, 1, 1)
    for told, lost in ((tangents, False), (many, True)):
        parts, moves = principal(told, 0.5)
        assert moves.shape == (directions(20), *shape)
        found = torch.einsum("npr,rnd->pnd", parts, moves.flatten(2))
        size = told.flatten(2).norm(dim=2)
        apart = ((found - told.flatten(2)).norm(dim=2) / size).square().sum(0)
        if lost:
            np.testing.assert_allclose(moves.flatten(2).square().mean(2), 0.25)
            unit = (told.flatten(2) / size[..., None]).transpose(0, 1)
            expected = torch.linalg.svdvals(unit)[:, directions(20) :].square().sum(1)
            np.testing.assert_allclose(apart, expected)
        else:
            assert apart.max() < 1e-12


def test_derivatives_of_a_plan_that_clips() -> None:
    """Its rows have an entry for each answer as it is, and one for the clipped one."""
    noises = to_fit(toy(), 6, 4, 0)
    plan = Plan("ddim-clip", (10.0, 1.0), ((10.0,), (1.0, 0.1, 0.8), (0.0, 0.1, -0.1, 0.2, 0.8)), clip=0.3)
    images, slopes = derivatives(noises.network, noises.noise, plan)
    np.testing.assert_allclose(images, sample(noises.network, noises.noise, plan), rtol=1e-5, atol=1e-6)
    values = parameters(plan)
    assert len(values) == len(slopes) == 2 + 1 + 3 + 5
    for index, slope in enumerate(slopes):
        move = 1e-3 * np.eye(len(values))[index]
        more, less = (
            sample(noises.network, noises.noise, with_parameters(plan, values + sign * move)) for sign in (1, -1)
        )
        change = (more - less) / 2e-3
        assert (change - slope).norm() < 0.2 * slope.norm() + 1e-3, index
