"""Merges LoRA weights into a pipeline's parts, by diffusers and PEFT."""

import importlib.util
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import safetensors
import torch
from torch import nn

from edge_sampler.models.families.base import Lora
from edge_sampler.models.families.libraries import module, quiet
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command

# By the names of PEFT, Kohya's scripts and diffusers. Other methods bring more tensors, which diffusers leaves out.
KNOWN = re.compile(r"lora(_[AB]|_up|_down|\.up|\.down|_linear_layer\.(up|down))\.(weight|bias)$|alpha$")


def merge(pipeline: str, parts: Mapping[str, nn.Module], loras: Sequence[Lora]) -> None:
    """Adds the changes of ``loras`` to the weights of ``parts``, in place.

    ``pipeline`` is the pipeline's class in diffusers; ``parts`` are its networks and text encoders by name. Raises
    UserError where diffusers merges none into that class, where PEFT is missing, and for a file that is damaged, of
    another model, or not used in whole.
    """
    if not loras:
        return
    made = getattr(module("diffusers"), pipeline)
    if not hasattr(made, "load_lora_weights"):
        raise UserError(f"--lora {loras[0].path}: diffusers merges no LoRA weights into a {pipeline}")
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"--lora needs PEFT: {install_command('diffusers')}")
    changed = {name: part for name, part in parts.items() if name in made._lora_loadable_modules}
    needed = [name for name, one in inspect.signature(made).parameters.items() if one.default is one.empty]
    for lora in loras:
        check(lora)
        try:
            with quiet("diffusers"):
                merge_one(made(**dict.fromkeys(needed) | changed), changed, lora)
        except UserError:
            raise
        except Exception as error:  # diffusers, transformers and PEFT each raise their own
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"--lora {lora.path} cannot be merged into the {pipeline}: {reason}") from error
    for part in changed.values():
        part.eval().requires_grad_(False)


def check(lora: Lora) -> None:
    """Raises UserError where the file cannot be read, holds NaN or infinity, or another kind of change than LoRA."""
    try:
        with safetensors.safe_open(lora.path, framework="pt") as file:
            names = list(file.keys())
            bad = next((name for name in names if not bool(torch.isfinite(file.get_tensor(name)).all())), None)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"--lora {lora.path} cannot be read: {error}") from error
    if bad:
        raise UserError(f"--lora {lora.path}: {bad} holds NaN or infinity")
    if other := next((name for name in names if not KNOWN.search(name)), None):
        raise UserError(f"--lora {lora.path} holds {other}, which is no LoRA: merge it with the tool that made it")


def merge_one(whole: Any, parts: Mapping[str, nn.Module], lora: Lora) -> None:
    """Merges one file by the pipeline ``whole`` of ``parts``. Raises UserError where not all of it is used."""
    file = {"weight_name": lora.path.name, "use_safetensors": True, "local_files_only": True}
    sizes = {"unet_config": parts["unet"].config} if "unet" in parts else {}  # by which SDXL's blocks are named
    found = whole.lora_state_dict(str(lora.path.parent), **file, **sizes)
    names = found[0] if isinstance(found, tuple) else found
    brought = sum(not name.endswith("alpha") for name in names)
    whole.load_lora_weights(str(lora.path.parent), **file)
    taken = sum(".lora_" in name for part in parts.values() for name, _ in part.named_parameters())
    if taken != brought or not taken:
        raise UserError(
            f"--lora {lora.path} brings {brought} tensors, and its layers in the pipeline have {taken}: it is of "
            "another model, or not whole"
        )
    whole.fuse_lora(
        [name for name, part in parts.items() if hasattr(part, "peft_config")], lora.scale, safe_fusing=True
    )
    whole.unload_lora_weights()
