"""The networks against the original implementation's outputs."""

import numpy as np
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.schedules import edm
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import base_step
from edge_sampler.models.denoiser import Denoiser
from tests.conftest import Golden, Parity, relative


def test_denoised_images_are_the_originals(golden: Golden, parity: Parity) -> None:
    x, sigma = torch.tensor(golden.arrays["x"]), torch.tensor(golden.arrays["sigma"])
    difference = relative(golden.model(x, sigma, **golden.conditions), golden.arrays["denoised"])
    parity("EDM's code", f"{golden.name}, denoised images", difference, 1e-5)


@pytest.mark.parametrize("steps", [5, 8])
def test_the_heun_solver_is_the_original_sampler(golden: Golden, steps: int, parity: Parity) -> None:
    spec = golden.model.spec
    sigmas = edm(steps, spec.sigma_min, spec.sigma_max)
    x = torch.tensor(golden.arrays["latents"]).double() * sigmas[0]
    images = find("heun").run(Network(golden.model, golden.conditions), x, sigmas, base_step, history=0)
    difference = relative(images, golden.arrays[f"edm_sampler_{steps}"])
    parity("EDM's code", f"{golden.name}, its sampler of {steps} steps", difference, 1e-4)


def test_sigma_may_be_a_number_a_scalar_or_one_an_image(digits: Denoiser) -> None:
    x = torch.randn(3, *digits.spec.shape)
    results = [digits(x, sigma) for sigma in (0.7, torch.tensor(0.7), torch.full((3,), 0.7))]
    assert torch.allclose(results[0], results[1])
    assert torch.allclose(results[0], results[2], atol=1e-5)


def test_class_minus_one_is_no_class() -> None:
    model = models.load("edm-fashion-cond")
    x = torch.randn(2, *model.spec.shape)
    none = model(x, 1.0)
    assert torch.allclose(model(x, 1.0, class_labels=torch.tensor([-1, -1])), none, atol=1e-5)
    assert not torch.allclose(model(x, 1.0, class_labels=torch.tensor([3, -1]))[0], none[0], atol=1e-3)


def test_the_shipped_network_denoises(digits: Denoiser) -> None:
    """On noisy digits it errs far less than the best linear guess, shrinking toward the mean image."""
    from edge_sampler.models.training import datasets

    images = datasets.digits().images
    noisy = images + 0.5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    denoised = digits(noisy, 0.5)
    variance = images.var(0, correction=0)
    linear = images.mean(0) + variance / (variance + 0.25) * (noisy - images.mean(0))
    assert np.sqrt((denoised - images).square().mean()) < 0.7 * np.sqrt((linear - images).square().mean())
