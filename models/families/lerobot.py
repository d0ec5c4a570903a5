"""Robot policies of lerobot: the folder of a DiffusionPolicy (arXiv 2303.04137), as ``save_pretrained`` writes it.

The stage before the loop normalises the observation and encodes it, by lerobot's own encoder; the loop's network is
lerobot's U-Net over time; the stage behind it takes the steps of the chunk that are executed, in the data set's units.
Statistics come from the processors of lerobot 0.4, or from the weights file, where lerobot 0.3 kept them. Of a folder
JSON and safetensors are read, and nothing else: lerobot's own reader of processors imports any class that they name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sampler.models import checkpoint
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Family, Options
from edge_sampler.models.own import Decoder, Encoder, adapt
from edge_sampler.models.precond import BETA_SCHEDULES, discrete_sigmas
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Condition, Output

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ENVIRONMENT, IMAGES, ACTION = (
    "observation.state",
    "observation.environment_state",
    "observation.images",
    "action",
)
STATISTICS = {  # by mode; all but the first take the data to [-1, 1]
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
WITHOUT_EFFECT = ("to_batch_processor", "device_processor", "rename_observations_processor")
OLD_STATISTICS = ("normalize_inputs.buffer_", "normalize_targets.buffer_", "unnormalize_outputs.buffer_")
SCHEDULE = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")


def recognises(folder: Path) -> bool:
    if (folder / PREPROCESSOR).is_file():
        return True
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"type", "input_features", "output_features"} <= config.keys()


def load(folder: Path, options: Options) -> Denoiser:
    """The policy of a folder: observations by lerobot's names → "actions" [n_action_steps, dims].

    Raises UserError for another policy than a DiffusionPolicy, and for files that are missing or do not fit.
    """
    if options != Options():
        raise UserError(f"{folder} is a robot policy, which makes no images; leave --size and --vae out")
    config = read_json(folder / CONFIG)
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


class Affine(nn.Module):
    """(x - low)/scale + offset: how lerobot normalises; ``undo`` is the way back."""

    def __init__(self, low: Tensor, scale: Tensor, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.register_buffer("low", low)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("low")) / self.get_buffer("scale") + self.offset

    def undo(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.get_buffer("scale") + self.get_buffer("low")


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


@dataclass(frozen=True)
class Normaliser:
    """A step of lerobot's: a mode for each type of feature, and statistics by name, such as "action.mean"."""

    modes: Mapping[str, str]
    statistics: Mapping[str, Tensor]
    eps: float = 1e-8
    only: tuple[str, ...] | None = None  # of the observation

    def affine(self, name: str, kind: str, shape: tuple[int, ...]) -> Affine:
        """Of one feature. Raises UserError where its statistics are missing, and for an unknown mode."""
        mode = self.modes.get(kind, "IDENTITY")
        if mode == "IDENTITY" or (self.only is not None and name not in (*self.only, ACTION)):
            return Affine(torch.zeros(()), torch.ones(()), 0.0)
        if mode not in STATISTICS:
            raise UserError(f"{name} is normalised by {mode!r}; supported: {', '.join(STATISTICS)}, IDENTITY")
        low, high = (self.statistic(f"{name}.{statistic}", mode, shape) for statistic in STATISTICS[mode])
        if mode == "MEAN_STD":
            return Affine(low, high if name == ACTION else high + self.eps, 0.0)
        width = high - low
        return Affine(low, torch.where(width == 0, self.eps, width) / 2, -1.0)

    def statistic(self, key: str, mode: str, shape: tuple[int, ...]) -> Tensor:
        """[*shape], or what broadcasts to it."""
        found = self.statistics.get(key)
        if found is None or not found.isfinite().all():
            raise UserError(
                f"the policy normalises by {mode} and its folder has no {key}: save its processors, which hold the "
                "data set's statistics, into that folder (save_pretrained of each)"
            )
        try:
            torch.broadcast_to(found, shape)
        except RuntimeError:
            raise UserError(f"{key} has shape {list(found.shape)}; it must fit the feature's, {list(shape)}") from None
        return found.float()


def normalisers(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Normaliser, Normaliser]:
    """Of observations and of actions. Raises UserError where the folder has neither, or a step of another kind."""
    old = {key: value for key, value in tensors.items() if key.startswith(OLD_STATISTICS)}
    if not old:
        return processor(folder, PREPROCESSOR, "normalizer_processor"), processor(
            folder, POSTPROCESSOR, "unnormalizer_processor"
        )
    try:
        modes = dict(config["normalization_mapping"])
        names = [*config["input_features"], *config["output_features"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: the features or their normalisation are missing ({error})") from error
    named = {  # lerobot 0.3 wrote "normalize_inputs.buffer_observation_state.mean"
        f"{name}.{key.rpartition('.')[2]}": value
        for name in names
        for key, value in old.items()
        if key.rpartition(".")[0].partition("buffer_")[2] == name.replace(".", "_")
    }
    return Normaliser(modes, named), Normaliser(modes, named)


def processor(folder: Path, file: str, kind: str) -> Normaliser:
    """What a processor's file says of normalisation."""
    path, found = folder / file, None
    if not path.is_file():
        raise UserError(
            f"{folder} has no {file}, which holds the statistics that the policy normalises by: save its processors "
            "into that folder (save_pretrained of each)"
        )
    try:
        for step in read_json(path)["steps"]:
            name, settings = step.get("registry_name") or step.get("class"), step.get("config", {})
            if name == kind:
                found = settings, step.get("state_file")
            elif name not in WITHOUT_EFFECT or settings.get("rename_map"):
                raise UserError(f"{path}: the step {name} changes data, and is not supported; supported: {kind}")
        if found is None:
            raise UserError(f"{path} has no step {kind}")
        settings, state = found
        statistics = checkpoint.read(folder / Path(state).name).tensors if state else {}
        only = settings.get("normalize_observation_keys")
        return Normaliser(settings["norm_map"], statistics, settings["eps"], None if only is None else tuple(only))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a processor as lerobot writes it ({error!r})") from error


def build(folder: Path, config: Mapping[str, Any]) -> Any:
    """lerobot's policy of that config, its weights not yet set. Raises UserError where lerobot cannot make it."""
    try:
        import draccus
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    except (ImportError, RuntimeError) as error:  # torchvision of another PyTorch raises RuntimeError
        raise UserError(
            f"{folder} is a policy of lerobot, which cannot be imported ({error}): pip install lerobot==0.4.4, and "
            "the torchvision that belongs to this PyTorch; see docs/policy.md"
        ) from error
    settings = {key: value for key, value in config.items() if key != "type"}
    settings |= {"device": "cpu", "compile_model": False, "pretrained_backbone_weights": None}  # nothing is downloaded
    try:
        return DiffusionPolicy(draccus.decode(DiffusionConfig, settings))
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


def read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable JSON object ({error})") from error


FAMILY = Family(
    "robot policies of lerobot",
    recognises,
    load,
    ("DiffusionPolicy",),
    "small ones with random weights make the actions of lerobot's own loop, in PyTorch and as graphs",
)
