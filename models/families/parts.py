"""The parts of a diffusers pipeline's folder, each loaded by the library that saved it; nothing in it is executed."""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from edge_sampler.models.arguments import preconditioning_of
from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser, Levels, Preconditioned
from edge_sampler.models.families.base import Lora, Options
from edge_sampler.models.families.libraries import VAES, class_of, load
from edge_sampler.models.families.lora import merge
from edge_sampler.models.own import Encoder
from edge_sampler.models.pipeline import INDEX
from edge_sampler.models.precond import BETA_SCHEDULES, Preconditioning, discrete_sigmas
from edge_sampler.models.scheduler_settings import (
    DISCRETE_ARGUMENTS,
    DISCRETE_SCHEDULERS,
    FLOW_ARGUMENTS,
    FLOW_SCHEDULERS,
    check_scheduler,
)
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.json_file import read_object
from edge_sampler.runtime.text import Text

MORE_DISCRETE_SCHEDULERS = (
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
)
GUIDANCE = Condition((), description="the guidance that the network is told; --set guidance_scale=3.5 builds it in")
Shift = Callable[[int, Any], dict[str, Any]]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # without which it is made up


@dataclass(frozen=True)
class Parts:
    """A pipeline's folder, its model_index.json, the LoRA weights to merge, and the parts that are loaded by now."""

    folder: Path
    index: Mapping[str, Any]
    loras: Sequence[Lora] = ()
    loaded: dict[str, nn.Module] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, index: Mapping[str, Any], loras: Sequence[Lora] = ()) -> "Parts":
        """Raises UserError where LoRA weights lie beside the pipeline that are not among ``loras``."""
        named = {lora.path.resolve() for lora in loras}
        for path in folder.glob("*lora*.safetensors"):
            if path.resolve() not in named:
                raise UserError(f"{path} holds LoRA weights: merge them with --lora {path}, or move them elsewhere")
        parts = cls(folder, index, loras)
        if parts.named("safety_checker")[0]:
            print(f"note: the safety checker of {folder} is left out", file=sys.stderr)
        return parts

    def named(self, name: str) -> tuple[Any, Any]:
        """Library and class of a part, None twice where there is none. Raises UserError for anything else."""
        told = self.index.get(name) or [None, None]
        if not isinstance(told, list) or len(told) != 2:
            raise UserError(f"{self.folder / INDEX}: {name} is {told!r:.40}; it must be [library, class]")
        return told[0], told[1]

    def load(self, name: str, *classes: str) -> Any:
        """A part, ready to use in float32. Raises UserError where it is missing, damaged, or of another class."""
        library, found = self.named(name)
        if found not in classes:
            raise UserError(f"{self.folder}: its {name} is {found or 'missing'}; supported: {', '.join(classes)}")
        part = load(self.folder / name, str(library), str(found))
        if isinstance(part, nn.Module):
            self.loaded[name] = part
        return part

    def tokens(
        self, name: str, encoder: Any, largest: int | None = None, follows: str = "", lower: bool = False
    ) -> Condition:
        """The token ids of a prompt, by the tokenizer ``name``, for its ``encoder``.

        ``largest`` is their number where the encoder does not limit it; ``lower``: of the prompt in small letters, and
        without the spaces around it. Raises UserError where the tokenizer is missing.
        """
        folder = self.folder / name
        if not any((folder / file).is_file() for file in TOKENIZER_FILES):
            raise UserError(f"{self.folder}: its {name} is missing: there is none of {', '.join(TOKENIZER_FILES)}")
        _, found = self.named(name)
        made = load(folder, "transformers", str(found))
        try:
            tokenizer = made.backend_tokenizer
        except AttributeError as error:
            raise UserError(f"{folder}: {found} has no form that the library tokenizers reads") from error
        tokenizer.no_truncation()
        tokenizer.enable_padding(direction="right", pad_id=made.pad_token_id, pad_token=made.pad_token)
        if lower:
            normalizers = importlib.import_module("tokenizers.normalizers")
            before = [normalizers.Lowercase(), normalizers.Strip()]
            tokenizer.normalizer = normalizers.Sequence([*before, *filter(None, [tokenizer.normalizer])])
        length = int(min(made.model_max_length, largest or encoder.config.max_position_embeddings))
        description = f"what is to be seen, at most {length} tokens"
        return Condition((length,), "int64", description=description, text=Text.of(tokenizer.to_str(), None, follows))

    def vae(self, options: Options, channels: int, name: str = "vae", classes: Sequence[str] = VAES) -> Any:
        """The decoder of latents, the pipeline's own or another. Raises UserError where it decodes other latents."""
        own = self.load(name, *classes)
        if options.vae is None:
            return own
        other = load(options.vae, "diffusers", class_of(options.vae))
        found, factors = other.config.latent_channels, (factor_of(own), factor_of(other))
        if found != channels or len(set(factors)) > 1:
            raise UserError(
                f"--vae {options.vae} decodes latents of {found} channels to {factors[1]} times their size; the "
                f"pipeline's have {channels} channels and become {factors[0]} times as large"
            )
        return other

    def noise(self, shift: Shift) -> tuple[Preconditioning, Levels]:
        """What the scheduler tells of training, and its own noise levels. Raises UserError where it is not known."""
        _, name = self.named("scheduler")
        known = (*DISCRETE_SCHEDULERS, *MORE_DISCRETE_SCHEDULERS, *FLOW_SCHEDULERS)
        scheduler = self.load("scheduler", *known)
        config = scheduler.config
        check_scheduler(read_object(self.folder / "scheduler" / "scheduler_config.json"), self.folder)
        flows = name in FLOW_SCHEDULERS
        given = {key: config[key] for key in (FLOW_ARGUMENTS if flows else DISCRETE_ARGUMENTS) if key in config}
        try:
            preconditioning = preconditioning_of("FlowPrecond" if flows else "DDPMPrecond", given)
        except ValueError as error:
            raise UserError(f"{self.folder}: the scheduler's {error}") from error
        if flows:
            return preconditioning, flow_levels(scheduler, shift)
        betas = BETA_SCHEDULES[config.beta_schedule](config.beta_start, config.beta_end, config.num_train_timesteps)
        return preconditioning, discrete_levels(scheduler, discrete_sigmas(betas))

    def configs(self) -> dict[str, Any]:
        """The settings of all parts: what decides the answers, beside weights."""
        paths = [*self.folder.glob("*/config.json"), *self.folder.glob("*/*_config.json")]
        return {str(path.relative_to(self.folder)): path.read_text() for path in sorted(paths)}

    def denoiser(
        self,
        network: nn.Module,
        inputs: Inputs,
        encoder: Encoder | None,
        vae: Any,
        size: tuple[int, int],
        facts: Sequence[Any] = (),
        shift: Shift = lambda steps, config: {"num_inference_steps": steps},
    ) -> Denoiser:
        """The pipeline behind the contract: ``network`` of latents between its encoder and its VAE.

        ``size`` is that of the images; ``facts`` decide the answers beside the folder's settings;
        ``shift`` is what a scheduler of flow matching is told for so many steps.
        """
        preconditioning, levels = self.noise(shift)
        merge(self.index["_class_name"], self.loaded, self.loras)
        model = Preconditioned(network, preconditioning, inputs)
        weights = weights_sha256(model.state_dict())
        model.decoder = Decode(vae).eval().requires_grad_(False)
        if encoder:
            model.encoder = encoder.module.eval().requires_grad_(False)
        stages = [weights_sha256(stage.state_dict()) for stage in (model.encoder, model.decoder) if stage is not None]
        told = [self.configs(), stages, dict(vae.config), size, *facts]
        channels = vae.config.get("out_channels", 3)
        model.describe(self.folder.resolve().name, "unknown", weights, told, output=Output("images", (channels, *size)))
        if encoder:
            model.spec = replace(model.spec, raw=encoder.inputs, made=encoder.makes)
        model.own_levels, model.spec = levels, replace(model.spec, schedule="own")
        return model


def factor_of(vae: Any) -> int:
    """How many pixels a latent is wide and high."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def size_of(options: Options, latents: Any, factor: int) -> tuple[int, int]:
    """Height and width of the images: as asked for, or of so many ``latents`` (a number or two) by default.

    Raises UserError for a size that is no multiple of ``factor``, and where neither says it.
    """
    if options.size is None:
        if not latents:
            raise UserError("the pipeline does not say how large its images are: give --size HEIGHTxWIDTH")
        sizes = latents if isinstance(latents, list | tuple) else [latents, latents]
        if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise UserError(f"the pipeline's sample_size is {latents!r:.40}; it must be one whole number, or two")
        height, width = sizes
        return int(height * factor), int(width * factor)
    height, width = options.size
    if height % factor or width % factor or min(height, width) < factor:
        raise UserError(f"--size {height}x{width}: height and width have to be multiples of {factor}")
    return height, width


def discrete_levels(scheduler: Any, sigmas: np.ndarray) -> Levels:
    """Where the pipeline's own scheduler evaluates, as noise levels; then 0."""

    def levels(steps: int) -> list[float]:
        times = timesteps(scheduler, lambda: scheduler.set_timesteps(steps), steps)
        return falling(np.exp(np.interp(times, np.arange(len(sigmas)), np.log(sigmas))), scheduler)

    return levels


def flow_levels(scheduler: Any, shift: Shift) -> Levels:
    """The same of flow matching: times t, σ = t/(1 - t)."""

    def levels(steps: int) -> list[float]:
        told = shift(steps, scheduler.config)
        times = np.array(timesteps(scheduler, lambda: scheduler.set_timesteps(**told), steps))
        times = np.minimum(times / scheduler.config.num_train_timesteps, 1 - 1e-7)
        return falling(times / (1 - times), scheduler)

    return levels


def falling(levels: np.ndarray, scheduler: Any) -> list[float]:
    """The levels, and 0. Raises UserError unless each is below the one before."""
    whole = [*levels.tolist(), 0.0]
    if not all(above > below for above, below in pairwise(whole)):
        told = ", ".join(f"{level:.4g}" for level in whole)
        raise UserError(f"{type(scheduler).__name__} has noise levels that do not fall: {told}: take --schedule")
    return whole


def timesteps(scheduler: Any, set_timesteps: Callable[[], None], steps: int) -> list[float]:
    """The scheduler's own, each once. Raises UserError where it has none for so many steps."""
    try:
        set_timesteps()
    except (ValueError, TypeError, RuntimeError, IndexError, ArithmeticError) as error:
        raise UserError(f"{type(scheduler).__name__} has no noise levels for {steps} steps: {error}") from error
    times = list(dict.fromkeys(float(time) for time in scheduler.timesteps))
    if len(times) != steps:
        raise UserError(f"{type(scheduler).__name__} has {len(times)} noise levels for {steps} steps: take --schedule")
    return times


class Decode(nn.Module):
    """Latents as the network sees them, [n, channels, h, w] → images [n, 3, H, W], about [-1, 1]."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae
        self.scale, self.shift = vae.config.get("scaling_factor") or 1.0, vae.config.get("shift_factor") or 0.0
        for name, value in (("scaling_factor", self.scale), ("shift_factor", self.shift)):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise UserError(f"the VAE's {name} is {value!r:.40}; it must be a finite number")
        if vae.config.get("latents_mean") is not None:
            raise UserError("the VAE's latents_mean is not supported")

    def forward(self, x: Tensor) -> Tensor:
        return self.vae.decode(x / self.scale + self.shift, return_dict=False)[0]
