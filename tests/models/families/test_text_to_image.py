"""Text-to-image pipelines of diffusers, against diffusers' own loops."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import edge_sampler
from edge_sampler import models
from edge_sampler.calibration.arguments import add_model_arguments, load_model
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.trace import trace
from edge_sampler.export.assemble import export_graphs, write_graphs
from edge_sampler.export.network_graph import export_decoder
from edge_sampler.export.save import save_checked
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Options
from edge_sampler.models.precond import BETA_SCHEDULES, discrete_sigmas
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from edge_sampler.runtime.text import tokenized
from tests.conftest import Parity, relative
from tests.models.families import tiny

PROMPTS, NEGATIVE = ["a Red heart", "star"], "blue"
MAKE: dict[str, Callable[[Path], Any]] = {
    "stable-diffusion": tiny.stable_diffusion,
    "stable-diffusion, v": lambda folder: tiny.stable_diffusion(folder, prediction_type="v_prediction"),
    "stable-diffusion-xl": tiny.stable_diffusion_xl,
    "stable-diffusion-3": tiny.stable_diffusion_3,
    "stable-diffusion-3 without T5": lambda folder: tiny.stable_diffusion_3(folder, with_t5=False),
    "flux": tiny.flux,
    "pixart-alpha": lambda folder: tiny.pixart(folder, "Alpha"),
    "pixart-sigma": lambda folder: tiny.pixart(folder, "Sigma"),
}
DRAWN = ("stable-diffusion-xl", "stable-diffusion-3", "flux", "pixart-sigma")  # as graphs too
TOLD = 3.5  # the guidance that Flux's network is told


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
    """The pipeline's own. Its first state is noise of variance 1; DDIM ends at the first level, Euler at 0."""
    assert model.own_levels
    levels, config = model.own_levels(steps), kind.pipeline.scheduler.config
    flow = "Flow" in type(kind.pipeline.scheduler).__name__
    start, end = float((1 + levels[0] if flow else np.sqrt(1 + levels[0] ** 2)) / levels[0]), 1.0
    if isinstance(kind.pipeline.scheduler, diffusers.DDIMScheduler) and not config.set_alpha_to_one:
        levels[-1] = model.spec.sigma_min
        end = float(np.sqrt(1 + levels[-1] ** 2))
    table = trace(Scheme(find("ddim"), levels, steps)).table
    rows = [(row[0] * start, *row[1:]) for row in table]
    return Plan("ddim", tuple(levels[:-1]), (*rows[:-1], tuple(entry / end for entry in rows[-1])))


def latents(
    kind: Kind, noise: np.ndarray, steps: int, size: tuple[int, int], guidance: float, negative: str | None = NEGATIVE
) -> torch.Tensor:
    """By diffusers."""
    told: dict[str, Any] = {"guidance_scale": guidance}
    told |= {"negative_prompt": [negative] * len(PROMPTS)} if guidance != 1 and negative is not None else {}
    given = torch.from_numpy(noise)
    if kind.name == "flux":
        told |= {"guidance_scale": TOLD, "true_cfg_scale": guidance, "negative_prompt": [negative or ""] * len(PROMPTS)}
        given = diffusers.FluxPipeline._pack_latents(given, *given.shape)
    if kind.name.startswith("pixart"):
        told |= {"use_resolution_binning": False}
    if kind.name in ("flux", "stable-diffusion-3"):
        told |= {"max_sequence_length": tiny.LENGTH}
    found = kind.pipeline(
        PROMPTS, latents=given, height=size[0], width=size[1], num_inference_steps=steps, output_type="latent", **told
    ).images
    if kind.name == "flux":
        found = diffusers.FluxPipeline._unpack_latents(found, *size, kind.pipeline.vae_scale_factor)
    return found


def told(model: Denoiser, negative: str | None = NEGATIVE) -> dict[str, np.ndarray]:
    """The texts, as token ids."""
    texts: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": negative}
    known = model.spec.called_with
    given = {name: text for name, text in texts.items() if name in known.conditions}
    return known.check(tokenized(known.conditions, given), len(PROMPTS))[0]


def image(kind: Kind, latents: torch.Tensor) -> np.ndarray:
    """By diffusers, in [0, 1]."""
    vae = kind.pipeline.vae
    made = vae.decode(latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)).sample
    return (made / 2 + 0.5).clamp(0, 1).detach().numpy()


def loaded(kind: Kind, size: tuple[int, int], guidance: float, decoder: bool = True) -> Denoiser:
    values = {"guidance_scale": TOLD} if kind.name == "flux" else None
    model = models.load(str(kind.folder), options=Options(size))
    model.decoder = model.decoder if decoder else None
    return conditioned(model, guidance=guidance, values=values)


def made_by(model: Denoiser, noise: np.ndarray, plan: Plan, negative: str | None = NEGATIVE) -> torch.Tensor:
    """Latents, in PyTorch."""
    conditions = model.encode(told(model, negative))
    return sample(Network(model, conditions), torch.from_numpy(noise).double(), plan).float()


@pytest.mark.parametrize(("size", "guidance"), [((16, 24), 7.5), ((32, 32), 1.0)])
def test_pipelines_make_what_diffusers_makes(
    kind: Kind, size: tuple[int, int], guidance: float, tmp_path: Path, parity: Parity
) -> None:
    of = f"diffusers, {kind.name}"
    model = loaded(kind, size, guidance)
    decodes = kind.name == DRAWN[0]  # all have the same VAE
    drawn = export_graphs(loaded(kind, size, guidance, decodes)) if guidance != 1 and kind.name in DRAWN else None
    noise = unit_noise(range(len(PROMPTS)), model.spec.shape)
    for steps in (4, 10):
        how = f"NFE {steps}, {size[0]}×{size[1]}" + f", guidance {guidance:g}" * (guidance != 1)
        plan = plan_of(model, kind, steps)
        expected = latents(kind, noise, steps, size, guidance)
        state = made_by(model, noise, plan)
        parity(of, f"latents, {how}", relative(state, expected), 1e-4)
        made = model.decode(state).numpy()
        parity(of, f"images, {how}", np.abs((made / 2 + 0.5).clip(0, 1) - image(kind, expected)).max(), 1e-3)
        if drawn:
            (tmp_path / how).mkdir()
            write_graphs(drawn, plan, tmp_path / how)
            with Session(tmp_path / how / "sampler.onnx") as session:
                found = session.run({"noise": noise, **told(model)})["images"]
            parity(of, f"graph against PyTorch, {how}", relative(found, made if decodes else state), 1e-4)


def test_without_a_negative_prompt_guidance_is_the_pipelines(kind: Kind) -> None:
    """Away from the empty text, or from zeros."""
    model = loaded(kind, (16, 16), 2.0)
    plan, noise = plan_of(model, kind, 2), unit_noise(range(len(PROMPTS)), model.spec.shape)
    expected = latents(kind, noise, 2, (16, 16), 2.0, None)
    assert relative(made_by(model, noise, plan, None), expected) < 1e-4


def test_latents_without_a_prompt_are_decoded(tmp_path: Path) -> None:
    pipeline = tiny.latent_diffusion(tmp_path)
    model = models.load(str(tmp_path))
    assert model.spec.output.shape == (3, 16, 16)
    plan = plan_of(model, Kind("", pipeline, tmp_path), 4)
    noise = torch.randn(2, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    expected = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np").images
    state = sample(Network(model), noise.double(), plan).float()
    decoder = export_decoder(model)
    assert decoder
    save_checked(decoder, tmp_path / "decoder.onnx")
    with Session(tmp_path / "decoder.onnx") as session:
        made = session.run({"x": state.numpy()})["images"]
    assert np.abs((made / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1) - expected).max() < 1e-3


def test_distilled_networks_are_told_their_guidance(tmp_path: Path) -> None:
    """Latent consistency models in one step: in more of them, their pipeline adds fresh noise."""
    kind = Kind("", tiny.latent_consistency(tmp_path), tmp_path)
    model = conditioned(models.load(str(tmp_path)), values={"guidance_scale": 8.5})
    plan, noise = plan_of(model, kind, 1), unit_noise([0, 1], model.spec.shape)
    assert model.own_levels
    assert len(model.own_levels(4)) == 5
    state = sample(Network(model, model.encode(told(model))), torch.from_numpy(noise).double(), plan)
    assert relative(state, latents(kind, noise, 1, (32, 32), 8.5)) < 1e-4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    tiny.stable_diffusion(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_sizes_that_the_vae_makes_and_others(saved: Path) -> None:
    """A network halves its latents, and takes odd ones too."""
    model = models.load(str(saved), options=Options((10, 6)))
    assert (model.spec.shape, model.spec.output.shape) == ((4, 5, 3), (3, 10, 6))
    assert model(torch.zeros(1, 4, 5, 3), 1.0, prompt_embeds=torch.zeros(1, tiny.LENGTH, tiny.WIDTH)).shape[2:] == (
        5,
        3,
    )
    for size in ((11, 6), (0, 6)):
        with pytest.raises(UserError, match=r"--size \d+x6: height and width have to be multiples of 2"):
            models.load(str(saved), options=Options(size))


def test_a_fixed_solver_takes_the_pipelines_own_levels(saved: Path, digits: Denoiser) -> None:
    model = edge_sampler.load_model(str(saved), size=(16, 24))
    assert model.spec.output.shape == (3, 16, 24)
    steps = [751, 501, 251, 1]  # leading, offset by one
    levels = discrete_sigmas(BETA_SCHEDULES["scaled_linear"](0.00085, 0.012, 1000))[steps]
    guided = conditioned(model, guidance=2.0)
    np.testing.assert_allclose(calibrate(guided, Settings(4, "ddim")).sigmas, levels)
    np.testing.assert_allclose(calibrate(model, Settings(4, "ddim", schedule="own")).sigmas, levels)
    assert calibrate(model, Settings(4, "ddim", schedule="edm")).sigmas[0] == pytest.approx(model.spec.sigma_max)
    with pytest.raises(UserError, match="--schedule own: edm-digits brings no noise levels"):
        calibrate(digits, Settings(4, "ddim", schedule="own"))


def test_another_vae(saved: Path, tmp_path: Path) -> None:
    small = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    small.save_pretrained(tmp_path / "taesd")
    model = models.load(str(saved), options=Options(vae=tmp_path / "taesd"))
    x = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(model.decode(x), small.decode(x / small.config.scaling_factor).sample)
    assert model.spec.fingerprint != models.load(str(saved)).spec.fingerprint
    tiny.autoencoder(latent_channels=8).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="decodes latents of 8 channels"):
        models.load(str(saved), options=Options(vae=tmp_path / "other"))
    with pytest.raises(UserError, match="no folder of a VAE"):
        models.load(str(saved), options=Options(vae=tmp_path / "nothing"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "another pipeline": (
        lambda folder: edit(folder / "model_index.json", _class_name="KandinskyPipeline"),
        "is a KandinskyPipeline, which is not supported; supported: DDPMPipeline, .*StableDiffusionPipeline",
    ),
    "two pipelines": (
        lambda folder: edit(folder / "model_index.json", _class_name=["os", "system"]),
        r"is a \['os', 'system'\], which is not supported",
    ),
    "no VAE": (lambda folder: remove(folder / "vae"), "vae is missing"),
    "no U-Net": (lambda folder: edit(folder / "model_index.json", unet=[None, None]), "its unet is missing"),
    "no weights": (
        lambda folder: remove(folder / "unet/diffusion_pytorch_model.safetensors"),
        "unet cannot be loaded as UNet2DConditionModel",
    ),
    "no tokenizer": (lambda folder: remove(folder / "tokenizer/tokenizer.json"), "its tokenizer is missing"),
    "another scheduler": (
        lambda folder: edit(folder / "model_index.json", scheduler=["diffusers", "UnCLIPScheduler"]),
        "its scheduler is UnCLIPScheduler; supported: DDPMScheduler",
    ),
    "betas": (
        lambda folder: edit(folder / "scheduler/scheduler_config.json", trained_betas=[0.1, 0.2]),
        r"trained_betas = \[0.1, 0.2\] is not supported",
    ),
    "code": (
        lambda folder: edit(folder / "model_index.json", vae=["mine", "AutoencoderKL"]),
        "is of mine, and only what diffusers and transformers load",
    ),
    "LoRA": (lambda folder: (folder / "pytorch_lora_weights.safetensors").write_bytes(b""), "LoRA weights: merge"),
    "told an image": (
        lambda folder: diffusers.UNet2DConditionModel.from_config(tiny.unet().config, in_channels=9).save_pretrained(
            folder / "unet"
        ),
        "told an image beside the latents",
    ),
}


@pytest.mark.parametrize(
    ("offset", "message"),
    [(2000, "has noise levels that do not fall: .*: take --schedule"), (10**30, "has no noise levels")],
)
def test_levels_of_the_pipelines_own_have_to_fall(offset: int, message: str, copy: Path) -> None:
    edit(copy / "scheduler/scheduler_config.json", steps_offset=offset)
    levels = models.load(str(copy)).own_levels
    assert levels
    with pytest.raises(UserError, match=message):
        levels(4)


@pytest.mark.parametrize("what", SPOILT)
def test_what_cannot_be_used_is_one_line(what: str, copy: Path) -> None:
    spoil, message = SPOILT[what]
    spoil(copy)
    with pytest.raises(UserError, match=message) as raised:
        models.load(str(copy))
    assert "\n" not in str(raised.value)


def test_a_safety_checker_is_left_out_and_that_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    models.load(str(copy))
    assert "safety checker" in capsys.readouterr().err


def test_without_diffusers_the_line_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"pip install .*\[diffusers\]'"):
        models.load(str(saved))


def test_examples_are_of_what_is_not_built_in(tmp_path: Path) -> None:
    tiny.latent_consistency(tmp_path / "lcm")
    (tmp_path / "prompts.txt").write_text("a red heart\nstar\n")
    np.savez(tmp_path / "other.npz", guidance_scale=np.ones(2, np.float32))
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    told = ["--set", "guidance_scale=8.5", "--prompts", str(tmp_path / "prompts.txt"), "--guidance", "2"]
    told += ["--conditions", str(tmp_path / "other.npz"), "--size", "16x24", "--device", "cpu"]
    model = load_model(parser.parse_args(["--model", str(tmp_path / "lcm"), *told]))
    assert {name: value.shape for name, value in model.draw_raw([0, 1]).items()} == {
        "prompt": (2, tiny.LENGTH),
        "negative_prompt": (2, tiny.LENGTH),
    }
