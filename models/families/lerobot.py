"""Robot policies of lerobot: the folder of a DiffusionPolicy (arXiv 2303.04137), as ``save_pretrained`` writes it.

The stage before the loop normalises the observation and encodes it, by lerobot's own encoder; the loop's network is
lerobot's U-Net over time; the stage behind it takes the steps of the chunk that are executed, in the data set's units.
Of a folder JSON and safetensors are read, and nothing else: lerobot's own reader of processors imports any class that
they name.
"""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sampler.models import checkpoint
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Family, Options
from edge_sampler.models.families.lerobot_statistics import (
    ACTION,
    CONFIG,
    OLD_STATISTICS,
    PREPROCESSOR,
    Affine,
    normalisers,
)
from edge_sampler.models.own import Decoder, Encoder, adapt
from edge_sampler.models.precond import BETA_SCHEDULES, discrete_sigmas
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Condition, Output
from edge_sampler.runtime.json_file import read_json, read_object

WEIGHTS = "model.safetensors"
STATE, ENVIRONMENT, IMAGES = "observation.state", "observation.environment_state", "observation.images"
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")


def recognises(folder: Path) -> bool:
    if (folder / PREPROCESSOR).is_file():
        return True
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"type", "input_features", "output_features"} <= config.keys()


def load(folder: Path, options: Options) -> Denoiser:
    """The policy of a folder: observations by lerobot's names → "actions" [n_action_steps, dims].

    Raises UserError for another policy than a DiffusionPolicy, and for files that are missing or do not fit.
    """
    options.only(model=str(folder))
    config = read_object(folder / CONFIG)
    if config.get("type") != "diffusion":
        raise UserError(
            f"{folder} is lerobot's policy {config.get('type')!r}; supported: 'diffusion' (DiffusionPolicy)"
        )
    tensors = checkpoint.read(folder / WEIGHTS).tensors
    before, behind = normalisers(folder, config, tensors)
    policy = build(folder, config)
    fill(policy, {key: value for key, value in tensors.items() if not key.startswith(OLD_STATISTICS)}, folder)
    settings, diffusion = policy.config, policy.diffusion
    unet = diffusion.unet
    del diffusion.unet  # so that the encoder holds what it computes with, and no more
    features = {STATE: settings.robot_state_feature, **settings.image_features}
    features |= {ENVIRONMENT: settings.env_state_feature} if settings.env_state_feature else {}
    affines = [before.affine(name, one.type.value, tuple(one.shape)) for name, one in features.items()]
    steps, (dims,) = settings.n_obs_steps, settings.action_feature.shape
    width = unet.down_modules[0][0].cond_encoder[1].in_features - settings.diffusion_step_embed_dim
    schedule = {key: getattr(settings, key) for key in SCHEDULE}
    actions = Actions(behind.affine(ACTION, "ACTION", (dims,)), steps - 1, settings.n_action_steps)
    model = adapt(
        Network(unet),
        (settings.horizon, dims),
        "DDPMPrecond",
        licence=settings.license or "unknown",
        conditions={"features": Condition((width,), description="of the observation")},
        encoder=Encoder(
            Observation(diffusion, list(features), affines),
            {name: Condition((steps, *one.shape), description=describe(steps, one)) for name, one in features.items()},
            ("features",),
        ),
        decoder=Decoder(actions, Output("actions", (settings.n_action_steps, dims), "as in the policy's data set")),
        sigma_max=highest(schedule),
        **schedule,
    )
    model.spec = replace(model.spec, name=folder.resolve().name)
    return model


def highest(schedule: Mapping[str, Any]) -> float:
    """The noise level to sample from: at nine tenths of the steps, where lerobot's DDIM of ten steps starts.

    A cosine schedule's last steps go on to σ = 2029 (of 100), where a network can tell nothing from the noise, and an
    evaluation there is lost: docs/policy.md. Raises UserError for an unknown schedule.
    """
    kind, steps = schedule["beta_schedule"], schedule["num_train_timesteps"]
    if kind not in BETA_SCHEDULES:
        raise UserError(f"the policy's beta_schedule is {kind!r}; supported: {', '.join(BETA_SCHEDULES)}")
    betas = BETA_SCHEDULES[kind](schedule["beta_start"], schedule["beta_end"], steps)
    return float(discrete_sigmas(betas)[9 * steps // 10])


def describe(steps: int, feature: Any) -> str:
    return f"the last {steps}, oldest first" + (", pixels in [0, 1]" if feature.type.value == "VISUAL" else "")


class Network(nn.Module):
    """x [n, horizon, dims], t [n or 1], features [n or 1, width] → what lerobot's U-Net predicts, as x."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        return self.unet(x, t.expand(x.shape[0]), global_cond=features.expand(x.shape[0], -1))


class Observation(nn.Module):
    """The stage before the loop: each feature [n, n_obs_steps, …], in the order of ``names`` → features [n, width]."""

    def __init__(self, diffusion: nn.Module, names: list[str], affines: list[Affine]) -> None:
        super().__init__()
        self.diffusion, self.names, self.affines = diffusion, names, nn.ModuleList(affines)

    def forward(self, *values: Tensor) -> tuple[Tensor]:
        batch = {name: affine(x) for name, affine, x in zip(self.names, self.affines, values, strict=True)}
        pictures = [batch[name] for name in self.names if name not in (STATE, ENVIRONMENT)]
        if pictures:
            batch[IMAGES] = torch.stack(pictures, dim=-4)  # [n, n_obs_steps, cameras, channels, height, width]
        return (self.diffusion._prepare_global_conditioning(batch),)  # type: ignore[operator]


class Actions(nn.Module):
    """The stage behind the loop: x [n, horizon, dims] → the actions from the last observation on, as the robot's."""

    def __init__(self, affine: Affine, first: int, count: int) -> None:
        super().__init__()
        self.affine, self.steps = affine, slice(first, first + count)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine.undo(x[:, self.steps])


def imported() -> list[Any]:
    """draccus, and lerobot's modules of the configuration and of the policy.

    lerobot 0.4 imports all its policies, and some fail beside transformers 5: it does not see that package meanwhile.
    """
    for needed in ("diffusers.schedulers.scheduling_ddim", "diffusers.schedulers.scheduling_ddpm"):
        importlib.import_module(needed)  # which may see it
    policy, seen = "lerobot.policies.diffusion", sys.modules.pop("transformers", None)
    sys.modules["transformers"] = None  # type: ignore[assignment]
    try:
        names = ("draccus", f"{policy}.configuration_diffusion", f"{policy}.modeling_diffusion")
        return [importlib.import_module(name) for name in names]
    finally:
        del sys.modules["transformers"]
        sys.modules |= {"transformers": seen} if seen else {}


def build(folder: Path, config: Mapping[str, Any]) -> Any:
    """lerobot's policy of that config, its weights not yet set. Raises UserError where lerobot cannot make it."""
    try:
        draccus, configuration, modeling = imported()
    except (ImportError, RuntimeError) as error:  # torchvision of another PyTorch raises RuntimeError
        raise UserError(
            f"{folder} is a policy of lerobot, which cannot be imported ({error}): pip install lerobot==0.4.4, and "
            "the torchvision that belongs to this PyTorch; see docs/policy.md"
        ) from error
    settings = {key: value for key, value in config.items() if key != "type"}
    settings |= {"device": "cpu", "compile_model": False, "pretrained_backbone_weights": None}  # nothing is downloaded
    try:
        return modeling.DiffusionPolicy(draccus.decode(configuration.DiffusionConfig, settings))
    except Exception as error:  # lerobot, draccus and PyTorch raise what they like
        raise UserError(
            f"{folder / CONFIG} is damaged, or of another version of lerobot than the one installed: {error}"
        ) from error


def fill(policy: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Sets the weights. Raises UserError where they are of another architecture, or not finite."""
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from error
    bad = [key for key, value in policy.state_dict().items() if not value.isfinite().all()]
    if bad:
        raise UserError(f"{folder / WEIGHTS} holds NaN or infinity in {bad[0]}")


FAMILY = Family(
    "robot policies of lerobot",
    recognises,
    load,
    ("DiffusionPolicy",),
    "small ones with random weights make the actions of lerobot's own loop, in PyTorch and as graphs",
)
