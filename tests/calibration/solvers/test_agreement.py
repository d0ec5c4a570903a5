"""Our fixed solvers are those of diffusers and k-diffusion: same denoiser, grid and noise, same images.

diffusers is installed and asked; k-diffusion pulls in too much for that, so tests/data/k_diffusion.npz holds what its
samplers returned, in float64, for this denoiser, noise and edm(8, 0.002, 80).
"""

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from edge_sampler.calibration.schedules import edm
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import base_step
from tests.calibration.solvers.test_solvers import NOISE, denoise
from tests.conftest import DATA

STEPS = 8
GRID = {"use_karras_sigmas": True, "prediction_type": "sample"}  # the network's answer is the denoised image
MULTISTEP = GRID | {"lower_order_final": False}


def ours(name: str, sigmas: list[float]) -> np.ndarray:
    images: np.ndarray = find(name).run(denoise, NOISE * sigmas[0], sigmas, base_step, 0)
    return images


def agree(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm-solver-2", "dpmpp-2m"])
def test_k_diffusion(name: str) -> None:
    with np.load(DATA / "k_diffusion.npz") as stored:
        agree(ours(name, edm(STEPS, 0.002, 80.0)), stored[name])


@pytest.mark.parametrize(
    ("name", "scheduler", "options"),
    [
        ("dpmpp-2m", "DPMSolverMultistepScheduler", MULTISTEP | {"solver_order": 2, "euler_at_final": True}),
        ("dpmpp-3m", "DPMSolverMultistepScheduler", MULTISTEP | {"solver_order": 3, "euler_at_final": True}),
        ("deis", "DEISMultistepScheduler", MULTISTEP | {"solver_order": 3}),
        ("unipc", "UniPCMultistepScheduler", GRID | {"solver_order": 3, "solver_type": "bh2"}),
        ("heun", "HeunDiscreteScheduler", GRID),
        ("ddim", "EulerDiscreteScheduler", GRID),
    ],
)
def test_diffusers(name: str, scheduler: str, options: dict[str, Any]) -> None:
    """Variance-preserving schedulers hold x/√(1 + σ²); those that hold x itself scale what the network sees."""
    made = getattr(diffusers, scheduler)(**options)
    made.set_timesteps(STEPS)
    sigmas = made.sigmas.double().numpy()
    sigmas = sigmas[np.concatenate([[True], np.diff(sigmas) != 0])]  # Heun's has each level twice
    preserves = not hasattr(made, "is_scale_input_called") and name != "heun"
    scale = (lambda sigma: (1 + sigma**2) ** 0.5) if preserves else (lambda sigma: 1.0)
    x = torch.tensor(NOISE * sigmas[0] / scale(sigmas[0]))
    for step in made.timesteps:
        made.scale_model_input(x, step)
        sigma = float(made.sigmas[made.step_index if made.step_index is not None else 0])
        x = made.step(torch.tensor(denoise(x.numpy() * scale(sigma), sigma)), step, x).prev_sample
    agree(ours(name, sigmas.tolist()), x.numpy())


def test_ddim_of_diffusers() -> None:
    """DDIMScheduler has discrete steps; their noise levels are √((1 - ᾱ)/ᾱ), and its last step goes to σ = 0."""
    scheduler: Any = diffusers.DDIMScheduler  # untyped
    made = scheduler(prediction_type="sample", clip_sample=False, timestep_spacing="trailing")
    made.set_timesteps(STEPS)
    alphas = made.alphas_cumprod[made.timesteps].double().numpy()
    sigmas = np.sqrt(1 / alphas - 1)
    x = torch.tensor(NOISE * sigmas[0] * np.sqrt(alphas[0]))
    for step, sigma, alpha in zip(made.timesteps, sigmas, alphas, strict=True):
        x = made.step(torch.tensor(denoise(x.numpy() / np.sqrt(alpha), sigma)), step, x).prev_sample
    agree(ours("ddim", [*sigmas.tolist(), 0.0]), x.numpy())
