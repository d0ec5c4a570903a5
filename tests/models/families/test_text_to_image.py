"""Text-to-image pipelines of diffusers, against diffusers' own loops."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.trace import trace
from edge_sampler.export.assemble import export_graphs, write_graphs
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Options
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from edge_sampler.runtime.text import tokenized
from tests.conftest import relative
from tests.models.families import tiny

PROMPTS, NEGATIVE = ["a red heart", "star"], "blue"
MAKE: dict[str, Callable[[Path], Any]] = {
    "stable-diffusion": tiny.stable_diffusion,
    "stable-diffusion, v": lambda folder: tiny.stable_diffusion(folder, prediction_type="v_prediction"),
    "stable-diffusion-xl": tiny.stable_diffusion_xl,
}
DRAWN = ("stable-diffusion, v", "stable-diffusion-xl")  # as graphs too


@dataclass(frozen=True)
class Kind:
    """One pipeline: diffusers' own, and the folder that it saved."""

    name: str
    pipeline: Any
    folder: Path


@pytest.fixture(scope="module", params=MAKE)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("pipelines") / "pipeline"
    return Kind(request.param, MAKE[request.param](folder), folder)


def plan_of(model: Denoiser, kind: Kind, steps: int) -> Plan:
    """The pipeline's own. DDIM starts from noise of variance 1, and ends at the first level; Euler ends at 0."""
    assert model.own_levels
    levels, config = model.own_levels(steps), kind.pipeline.scheduler.config
    start, end = float(np.sqrt(1 + levels[0] ** 2) / levels[0]), 1.0
    if config.get("set_alpha_to_one") is False:
        levels[-1] = model.spec.sigma_min
        end = float(np.sqrt(1 + levels[-1] ** 2))
    table = trace(Scheme(find("ddim"), levels, steps)).table
    rows = [(row[0] * start, *row[1:]) for row in table]
    return Plan("ddim", tuple(levels[:-1]), (*rows[:-1], tuple(entry / end for entry in rows[-1])))


def latents(kind: Kind, noise: np.ndarray, steps: int, size: tuple[int, int], guidance: float) -> torch.Tensor:
    """By diffusers."""
    negative = {"negative_prompt": [NEGATIVE] * len(PROMPTS)} if guidance != 1 else {}
    return kind.pipeline(
        PROMPTS,
        latents=torch.from_numpy(noise),
        height=size[0],
        width=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance,
        output_type="latent",
        **negative,
    ).images


def told(model: Denoiser) -> dict[str, np.ndarray]:
    """The texts, as token ids."""
    texts: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": NEGATIVE}
    known = model.spec.called_with
    given = {name: text for name, text in texts.items() if name in known.conditions}
    return known.check(tokenized(known.conditions, given), len(PROMPTS))[0]


def image(kind: Kind, latents: torch.Tensor) -> np.ndarray:
    """By diffusers, in [0, 1]."""
    vae = kind.pipeline.vae
    made = vae.decode(latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)).sample
    return (made / 2 + 0.5).clamp(0, 1).detach().numpy()


@pytest.mark.parametrize(("steps", "size", "guidance"), [(4, (16, 24), 7.5), (10, (32, 32), 1.0)])
def test_pipelines_make_what_diffusers_makes(
    kind: Kind, steps: int, size: tuple[int, int], guidance: float, tmp_path: Path
) -> None:
    model = conditioned(models.load(str(kind.folder), options=Options(size)), guidance=guidance)
    plan, noise = plan_of(model, kind, steps), unit_noise(range(len(PROMPTS)), model.spec.shape)
    expected = latents(kind, noise, steps, size, guidance)
    state = sample(Network(model, model.encode(told(model))), torch.from_numpy(noise).double(), plan).float()
    assert relative(state, expected) < 1e-4
    made = model.decode(state).numpy()
    assert np.abs((made / 2 + 0.5).clip(0, 1) - image(kind, expected)).max() < 1e-3
    if guidance != 1 and kind.name in DRAWN:
        write_graphs(export_graphs(model), plan, tmp_path)
        with Session(tmp_path / "sampler.onnx") as session:
            found = session.run({"noise": noise, **told(model)})["images"]
        assert relative(found, made) < 1e-4


def test_latents_without_a_prompt_are_decoded(tmp_path: Path) -> None:
    pipeline = tiny.latent_diffusion(tmp_path)
    model = models.load(str(tmp_path))
    assert model.spec.output.shape == (3, 16, 16)
    plan, noise = plan_of(model, Kind("", pipeline, tmp_path), 4), unit_noise([0, 1], model.spec.shape)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, *model.spec.shape, generator=generator).numpy()
    expected = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    write_graphs(export_graphs(model), plan, tmp_path)
    with Session(tmp_path / "sampler.onnx") as session:
        made = session.run({"noise": noise})["images"]
    assert np.abs((made / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1) - expected).max() < 1e-3
