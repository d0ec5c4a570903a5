"""Pipelines of diffusers, against diffusers itself."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx_ir as ir
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import base_step
from edge_sampler.export.assemble import export_graphs, write_graphs
from edge_sampler.models.architecture import build, randomise
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.precond import BETA_SCHEDULES, discrete_sigmas
from edge_sampler.models.published import HUB
from edge_sampler.models.zoo import DDPM_256, DDPM_CIFAR10, ZOO
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample
from tests.conftest import Parity, relative
from tests.models.families import tiny


def denoised(unet: Any, x: torch.Tensor, sigma: float, step: int, labels: torch.Tensor | None = None) -> torch.Tensor:
    """By definition, of a network that predicts the noise: x of σ, shrunk to unit variance, is what it sees."""
    return x - sigma * unet(x / np.sqrt(1 + sigma**2), step, labels).sample


@pytest.mark.parametrize(("architecture", "resolution"), [(DDPM_CIFAR10, 32), (DDPM_256, 64)], ids=["32", "64"])
def test_networks_of_full_depth_are_those_of_diffusers(
    architecture: dict[str, Any], resolution: int, parity: Parity
) -> None:
    model = build(architecture | {"img_resolution": resolution}, "deep")
    randomise(model, 0)
    model.eval().requires_grad_(False)
    x = 3 * torch.randn(1, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler()
    for step in (0, 400, 999):
        sigma = float(((1 - scheduler.alphas_cumprod[step].double()) / scheduler.alphas_cumprod[step].double()).sqrt())
        difference = relative(model(x, sigma), denoised(model.model.unet, x, sigma, step))
        parity("diffusers, DDPM", f"full depth, {resolution} pixels, denoised at step {step}", difference, 1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_ddim_is_that_of_diffusers(schedule: str, prediction: str, tmp_path: Path, parity: Parity) -> None:
    """At the same steps, from the same state."""
    scheduler = diffusers.DDIMScheduler(beta_schedule=schedule, prediction_type=prediction, clip_sample=False)
    unet = tiny.ddpm(tmp_path, scheduler)
    model = models.load(str(tmp_path))
    scheduler.set_timesteps(10)
    levels = discrete_sigmas(BETA_SCHEDULES[schedule](1e-4, 0.02, 1000))
    sigmas = [*levels[scheduler.timesteps.numpy()].tolist(), 0.0]
    start = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    x = start
    for step in scheduler.timesteps:
        x = scheduler.step(unet(x, step).sample, step, x).prev_sample
    ours = find("ddim").run(Network(model), start.double() * np.sqrt(1 + sigmas[0] ** 2), sigmas, base_step, history=0)
    parity("diffusers, UNet2DModel", f"DDIM at NFE 10, {schedule}, {prediction}", relative(ours, x), 1e-4)


def test_sampling_starts_where_training_ended(tmp_path: Path) -> None:
    """At the noise level of the last of its own steps, where large images are all noise and their brightness is not."""
    scheduler = diffusers.DDPMScheduler()
    tiny.ddpm(tmp_path, scheduler)
    kept = scheduler.alphas_cumprod[-1].double()
    assert calibrate(models.load(str(tmp_path)), Settings(4, "ddim")).sigmas[0] == pytest.approx(
        float(((1 - kept) / kept).sqrt()), rel=1e-5
    )


def test_flow_matching_is_that_of_diffusers(tmp_path: Path) -> None:
    """Its Euler step, in t, and ours, in σ, are one: both are exact where the clean image does not change."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    unet = tiny.ddpm(tmp_path, scheduler)
    model = models.load(str(tmp_path))
    x, t = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 0.6
    image = x - t * unet(x, 1000 * t).sample  # of x_t = (1 - t)·image + t·noise and the answer noise - image
    assert relative(model(x / (1 - t), t / (1 - t)), image) < 1e-5


def test_classes_are_those_of_diffusers(tmp_path: Path) -> None:
    unet = tiny.ddpm(tmp_path, num_class_embeds=5)
    model = models.load(str(tmp_path))
    assert model.spec.classes == 5
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([4, 0, 2])
    sigma = model.spec.sigma_min
    assert relative(model(x, sigma, class_labels=labels), denoised(unet, x, sigma, 0, labels)) < 1e-5
    with pytest.raises(UserError, match="is missing, and has no value that means nothing"):
        model(x, sigma)
    known, none = (denoised(unet, x, sigma, 0, of) for of in (labels, torch.full((3,), 1)))
    guided = conditioned(model, guidance=3.0, null_class=1)
    assert relative(guided(x, sigma, class_labels=labels), 3 * known - 2 * none) < 1e-5
    assert relative(guided(x, sigma), none) < 1e-5


def test_a_pipeline_becomes_a_graph(tmp_path: Path) -> None:
    tiny.ddpm(tmp_path)
    model = models.load(str(tmp_path))
    plan = calibrate(model, Settings(4, "iia-ipndm", fit_batch=8, heldout=4))
    write_graphs(export_graphs(model), plan, tmp_path)
    noise = np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)
    expected = sample(Network(model), torch.from_numpy(noise).double(), plan)
    with Session(tmp_path / "sampler.onnx") as session:
        assert relative(session.run({"noise": noise})["images"], expected) < 1e-4
    assert not {"Gemm", "Sin", "Cos"} & {node.op_type for node in ir.load(tmp_path / "sampler.onnx").graph}


@pytest.mark.parametrize("name", [name for name, row in ZOO.items() if row.source.startswith(HUB)])
def test_rows_have_the_published_size(name: str) -> None:
    """arXiv 2006.11239, appendix B: 35.7 million parameters at 32×32, 114 million at 256×256."""
    with torch.device("meta"):
        model: Denoiser = build(ZOO[name].architecture, name)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert millions == pytest.approx(35.7 if name == "ddim-cifar10" else 114, rel=0.005)
