"""DDIM that clips its prediction and keeps the noise estimate: diffusers' clip_sample, as a table with two columns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import edge_sampler
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme, base_step
from edge_sampler.calibration.trace import trace
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.precond import DDPM_SIGMAS
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import relative

STEPS = 10
SHAPE = (2, 4, 4)


class Noise(torch.nn.Module):
    """Predicts noise so badly that predicted samples leave [-1, 1] at most steps."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (2 * x + t.reshape(-1, 1, 1, 1) / 500).sin()


@pytest.fixture(scope="module")
def model() -> edge_sampler.Denoiser:
    return edge_sampler.adapt(Noise(), SHAPE, "DDPMPrecond", sigma_max=float(DDPM_SIGMAS[-1]))


@pytest.fixture(scope="module")
def plan() -> Plan:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(STEPS)
    sigmas = [float(DDPM_SIGMAS[t]) for t in scheduler.timesteps]
    return trace(Scheme(find("ddim-clip"), [*sigmas, 0.0], STEPS))


def test_it_is_diffusers_ddim_with_clip_sample(model: edge_sampler.Denoiser, plan: Plan) -> None:
    scheduler = DDIMScheduler(clip_sample=True, set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    first = plan.sigmas[0]
    x = noise * first / np.sqrt(1 + first**2)
    clipped: list[bool] = []
    for t in scheduler.timesteps:
        made = scheduler.step(Noise()(x, t[None].float()), t, x)
        clipped.append(bool((made.pred_original_sample.abs() == 1).any()))
        x = made.prev_sample
    assert sum(clipped) >= STEPS // 2  # else it would be DDIM
    expected = sample(lambda x, sigma: model(x.float(), sigma).double(), noise.double(), plan)
    assert relative(expected, x) < 1e-4


def test_the_table_is_the_solver(plan: Plan) -> None:
    """Run over arrays as it is written, and as a table."""
    noise = np.random.default_rng(0).normal(size=(3, *SHAPE))
    looped = find("ddim-clip").run(
        lambda x, sigma: 3 * np.sin(x), noise * plan.sigmas[0], [*plan.sigmas, 0.0], base_step, 0
    )
    np.testing.assert_allclose(sample(lambda x, sigma: 3 * np.sin(x), noise, plan), looped, rtol=1e-9, atol=1e-12)
    assert (np.abs(looped) <= 1).all()


@pytest.mark.parametrize("draw", [unroll, roll])
def test_its_graphs_are_pytorchs(draw: object, model: edge_sampler.Denoiser, plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    save_checked(draw(export_graphs(model).denoiser, plan), tmp_path / "sampler.onnx")  # type: ignore[operator]
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    expected = sample(lambda x, sigma: model(x.float(), sigma).double(), noise.double(), plan)
    with Session(tmp_path / "sampler.onnx") as session:
        assert relative(session.run({"noise": noise.numpy()})["images"], expected) < 1e-4


def test_the_bound_is_part_of_what_a_plan_is() -> None:
    table = ((1.0,), (0.5, 0.25, 0.25))
    clipping = Plan("x", (1.0,), table, clip=1.0)
    assert clipping.sha256 != Plan("x", (1.0,), table, clip=2.0).sha256
    with pytest.raises(UserError, match="rows of 1 to 2 numbers"):
        Plan("x", (1.0,), table)
    with pytest.raises(UserError, match="clip is -1"):
        Plan("x", (1.0,), table, clip=-1.0)
