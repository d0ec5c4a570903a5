"""A solver's table: how the columns stand, and what a correction adds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_sampler.calibration.candidates import scheme_of
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, Solver, base_step
from edge_sampler.calibration.trace import correct, corrected_by, trace
from edge_sampler.runtime.plan import sample

SIGMAS = [8.0, 2.0, 0.5, 0.0]
NOISE = np.random.default_rng(0).normal(size=(4, 1, 2, 2))
MEAN = np.array([[[0.25, -1.0], [0.5, 0.75]]])


def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.tanh(x) * 3 / (1 + sigma)


def test_the_rows_of_eulers_method() -> None:
    """x' = x + (σ' - σ)·(x - D)/σ, from x = 8·noise."""
    plan = trace(Scheme(find("ddim"), SIGMAS, 3))
    assert (plan.solver, plan.sigmas, plan.mean, plan.clip) == ("ddim", (8.0, 2.0, 0.5), (), 0.0)
    np.testing.assert_allclose(np.concatenate(plan.table), [8, 2, 0.75, 0.5, 0.1875, 0.75, 0, 0, 0, 1], atol=1e-15)


@pytest.mark.parametrize("name", ["ddim", "iia-ddim", "ddim-clip", "heun"])
def test_an_analytical_first_step_has_the_means_column(name: str) -> None:
    """The table is the solver, whose first answer is the mean."""
    solver = find(name)
    nfe = 5 if name == "heun" else 3
    scheme = Scheme(solver, SIGMAS, nfe, solver.history or 0, MEAN)
    plan = trace(scheme)
    assert plan.solver == f"{solver.name}-afs"
    assert plan.nfe == nfe - 1
    assert np.array_equal(plan.mean, MEAN)
    images = scheme.run(denoise, SIGMAS[0] * NOISE, base_step)
    np.testing.assert_allclose(sample(denoise, NOISE, plan), images, rtol=1e-6)  # the plan's mean is float32


def test_each_step_has_its_own_correction() -> None:
    solver, gammas = find("iia-ddim"), [(), (0.25, -0.5), (0.125, 1.0)]
    scheme = Scheme(solver, SIGMAS, 3, 1)
    images = scheme.run(denoise, SIGMAS[0] * NOISE, corrected_by(gammas))
    np.testing.assert_allclose(sample(denoise, NOISE, trace(scheme, gammas)), images, rtol=1e-9)
    with pytest.raises(StopIteration):
        trace(scheme, gammas[:2])


def test_a_correction_is_the_sum_of_what_is_weighed() -> None:
    assert correct(1.0, [2.0, 3.0, 5.0], [0.5, 4.0, -1.0]) == 1 + 1 + 12 - 5
    assert correct(1.0, [float("nan"), 2.0], [0.0, 1.0]) == 3  # what weighs nothing is not even looked at
    with pytest.raises(ValueError, match="zip"):
        correct(1.0, [2.0], [0.5, 1.0])


def test_a_mean_beyond_the_bound_is_clipped_before() -> None:
    """A table has one column for it, and DDIM that clips would need two."""
    mean, wanted = 3 * torch.from_numpy(MEAN), Settings(2, "ddim-clip", "edm", afs=True)
    scheme = scheme_of(find("ddim-clip"), lambda steps: [*SIGMAS[:steps], 0.0], wanted, mean)
    plan = trace(scheme)
    assert np.abs(plan.mean).max() == 1
    images = scheme.run(lambda x, sigma: x.tanh() * 3, SIGMAS[0] * torch.from_numpy(NOISE), base_step)
    made = sample(lambda x, sigma: np.tanh(x) * 3, NOISE, plan)
    np.testing.assert_allclose(made, images, rtol=1e-6)
    with pytest.raises(AssertionError, match="starts from is not clipped"):
        trace(replace(scheme, mean=mean))


@pytest.mark.parametrize(("nfe", "told"), [(2, "more often than 2 times"), (4, "3 times instead of 4")])
def test_evaluations_are_counted(nfe: int, told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        trace(Scheme(find("ddim"), SIGMAS, nfe))


def test_a_solver_that_clips_says_so() -> None:
    clipping = find("ddim-clip")
    silent = Solver("silent", clipping.run, 1)
    assert trace(Scheme(clipping, SIGMAS, 3)).clip == 1
    with pytest.raises(AssertionError, match="a solver that clips says so"):
        trace(Scheme(silent, SIGMAS, 3))
