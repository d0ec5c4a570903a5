"""Pipelines of diffusers: a U-Net and a scheduler in a folder, or on the Hugging Face hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_sampler.models import checkpoint
from edge_sampler.models.checkpoint import Checkpoint
from edge_sampler.models.download import NotFoundError, fetch
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError

HUB = "https://huggingface.co/"
HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")  # the first that is there
DISCRETE_SCHEDULERS = (  # whose steps are those of training, whatever solver they are
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
DISCRETE_ARGUMENTS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.12
PREFIX = "model.unet."  # of the U-Net in our denoiser


def read(folder: Path) -> Checkpoint:
    """The weights and architecture of a pipeline's folder. Raises UserError where it holds another kind of pipeline."""
    found = [path for name in WEIGHTS for path in (folder / "unet" / name, folder / name) if path.is_file()]
    if not found:
        raise UserError(f"{folder} has no {' or '.join(WEIGHTS)}: the folder is no pipeline, or not whole")
    return Checkpoint(named_ours(checkpoint.read(found[0]).tensors), architecture(folder))


def architecture(folder: Path) -> dict[str, Any]:
    """The arguments of the pipeline's network and preconditioning, as ``models.architecture.build`` takes them."""
    network = _config(folder, "unet", "config.json")
    if network.pop("_class_name", None) != "UNet2DModel":
        raise UserError(f"{folder} is not a pipeline of a UNet2DModel, the one network of diffusers that is supported")
    size = network.pop("sample_size", None)
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise UserError(f"{folder}: sample_size is {size}; it must be one number, the images' height and width")
    network.pop("num_train_timesteps", None)  # of a learned embedding; the scheduler's is meant
    return {
        **_noise(folder),
        "model_type": "UNet2DModel",
        "img_resolution": size,
        "img_channels": network.pop("in_channels", 3),
        "label_dim": network.pop("num_class_embeds", None) or 0,
        **{key: value for key, value in network.items() if not key.startswith("_")},
    }


def _noise(folder: Path) -> dict[str, Any]:
    """What the scheduler tells of training."""
    config = _config(folder, "scheduler", "scheduler_config.json")
    name = config.get("_class_name")
    if name in FLOW_SCHEDULERS:
        return {"precond": "FlowPrecond", "num_train_timesteps": config.get("num_train_timesteps", 1000)}
    if name not in DISCRETE_SCHEDULERS:
        known = ", ".join((*DISCRETE_SCHEDULERS, *FLOW_SCHEDULERS))
        raise UserError(f"{folder}: the scheduler {name} is not supported; supported: {known}")
    for setting in ("trained_betas", "rescale_betas_zero_snr"):
        if config.get(setting):
            raise UserError(f"{folder}: the scheduler's {setting} is not supported")
    given = {key: config[key] for key in DISCRETE_ARGUMENTS if key in config}
    return {"precond": "DDPMPrecond", **given}


def _config(folder: Path, part: str, file: str) -> dict[str, Any]:
    """A part's JSON, which lies in a folder of its own or, in old pipelines, at the top."""
    path = next((path for path in (folder / part / file, folder / file) if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has neither {part}/{file} nor {file}: the folder is no pipeline, or not whole")
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a readable JSON object ({error})") from error


def named_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors by their names in our denoiser, whichever age of diffusers named them."""

    def ours(name: str) -> str:
        parts = name.removeprefix(PREFIX).split(".")
        if "attentions" in parts:
            parts = [OLD_ATTENTION.get(part, part) for part in parts]
        return PREFIX + ".".join(parts)

    return {ours(name): tensor for name, tensor in tensors.items()}


def folder_of(name: str) -> Path:
    """Where the files of the hub's pipeline ``name`` are kept, once they are there."""
    return cache_folder() / "hub" / name


def download(name: str) -> Path:
    """The folder of the hub's pipeline ``name``, its files downloaded first where they are not there.

    Raises UserError when they cannot be had.
    """
    folder, page = folder_of(name), f"{HUB}{name}"
    for part, files in (("unet", ["config.json"]), ("unet", WEIGHTS), ("scheduler", ["scheduler_config.json"])):
        places = [place for file in files for place in (f"{part}/{file}", file)]
        if any((folder / place).is_file() for place in places):
            continue
        for place in places:
            try:
                fetch(f"{page}/resolve/main/{place}", folder / place)
                break
            except NotFoundError:
                continue
        else:
            raise UserError(f"{page} has none of {', '.join(places)}: it is not there, or no pipeline of images")
    return folder


def is_local(name: str) -> bool:
    """Is the hub's pipeline ``name`` downloaded?"""
    return any((folder_of(name) / part / file).is_file() for part in ("unet", "") for file in WEIGHTS)
