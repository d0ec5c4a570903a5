"""Pipelines of diffusers: a U-Net and a scheduler in a folder, or on the Hugging Face hub."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from edge_sampler.models import checkpoint
from edge_sampler.models.checkpoint import Checkpoint
from edge_sampler.models.scheduler_settings import (
    DISCRETE_ARGUMENTS,
    DISCRETE_SCHEDULERS,
    FLOW_SCHEDULERS,
    check_scheduler,
)
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import check_docstrings, install_command
from edge_sampler.runtime.json_file import read_object

HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
INDEX = "model_index.json"  # which a whole pipeline has
WEIGHTS = "diffusion_pytorch_model"  # then a variant, a part and a suffix
PART = re.compile(r"-\d{5}-of-(?P<count>\d{5})")
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.12
PREFIX = "model.unet."  # of the U-Net in our denoiser


def read(folder: Path) -> Checkpoint:
    """The weights and architecture of a pipeline's folder. Raises UserError where it holds another kind of pipeline."""
    tensors = dict[str, Tensor]()
    for path in weights_files(folder):
        tensors |= checkpoint.read(path).tensors
    return Checkpoint(named_ours(tensors), architecture(folder))


def weights_files(folder: Path) -> list[Path]:
    """The U-Net's files: safetensors before pickles, whole precision before a variant of it, and all parts of one.

    Raises UserError where there is none, or a part is missing.
    """
    for suffix in (".safetensors", ".bin"):
        for place in (folder / "unet", folder):
            found = sorted(place.glob(f"{WEIGHTS}*{suffix}"), key=lambda path: (len(path.name), path.name))
            parts = [PART.search(path.name) for path in found]
            if found and parts[0] is None:
                return found[:1]
            if found and parts[0] is not None:
                count, whole = int(parts[0]["count"]), PART.sub("", found[0].name)
                kept = [path for path in found if PART.sub("", path.name) == whole]
                if len(kept) != count:
                    raise UserError(f"{place} has {len(kept)} of {count} parts of {whole}: the folder is not whole")
                return kept
    raise UserError(f"{folder} has no {WEIGHTS}.safetensors or .bin: the folder is no pipeline, or not whole")


def snapshot(folder: Path) -> Path:
    """The files' own folder, where ``folder`` is a repository in the cache of Hugging Face's tools."""
    main = folder / "refs" / "main"
    if main.is_file():
        return folder / "snapshots" / main.read_text().strip()
    found = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return found[0] if len(found) == 1 else folder


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
    """What the scheduler says of the training."""
    config = _config(folder, "scheduler", "scheduler_config.json")
    name = config.get("_class_name")
    known = (*DISCRETE_SCHEDULERS, *FLOW_SCHEDULERS)
    if name not in known:
        raise UserError(f"{folder}: the scheduler {name} is not supported; supported: {', '.join(known)}")
    check_scheduler(config, folder)
    if name in FLOW_SCHEDULERS:
        return {"precond": "FlowPrecond", "num_train_timesteps": config.get("num_train_timesteps", 1000)}
    given = {key: config[key] for key in DISCRETE_ARGUMENTS if key in config}
    return {"precond": "DDPMPrecond", **given}


def _config(folder: Path, part: str, file: str) -> dict[str, Any]:
    """A part's JSON, which lies in a folder of its own or, in old pipelines, at the top."""
    path = next((path for path in (folder / part / file, folder / file) if path.is_file()), None)
    if path is None:
        raise UserError(f"{folder} has neither {part}/{file} nor {file}: the folder is no pipeline, or not whole")
    return read_object(path)


def named_ours(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's tensors by their names in our denoiser, whichever release of diffusers named them."""

    def ours(name: str) -> str:
        parts = name.removeprefix(PREFIX).split(".")
        if "attentions" in parts:
            parts = [OLD_ATTENTION.get(part, part) for part in parts]
        return PREFIX + ".".join(parts)

    return {ours(name): tensor for name, tensor in tensors.items()}


def download(name: str) -> Path:
    """The folder of the hub's pipeline ``name``, its files downloaded first where they are not there.

    By diffusers' own loader, into the cache that all tools of Hugging Face share: HF_HOME, HF_ENDPOINT, HF_TOKEN and
    HF_HUB_OFFLINE say what they say everywhere. Raises UserError when the files cannot be had.
    """
    check_docstrings("diffusers")
    try:
        from diffusers import DiffusionPipeline
    except (ImportError, RuntimeError) as error:  # of its own, or of a library that it finds
        raise UserError(f"pipelines of the hub need diffusers: {install_command('diffusers')} ({error})") from error
    try:
        return Path(DiffusionPipeline.download(name))
    except Exception as error:  # of the hub, the network, or what lies there
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot get the pipeline {name} ({type(error).__name__}: {reason}); name a folder that holds it instead"
        ) from error


def is_local(name: str) -> bool:
    """Is the hub's pipeline ``name`` downloaded?"""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return isinstance(try_to_load_from_cache(name, INDEX), str)
