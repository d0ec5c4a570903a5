"""Text-to-image pipelines of diffusers, by the class that a folder's model_index.json names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Family, Options
from edge_sampler.models.families.parts import Parts, factor_of, size_of
from edge_sampler.models.own import Encoder
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Condition, Inputs

UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "ScoreSdeVePipeline", "KarrasVePipeline")


def stable_diffusion(parts: Parts, options: Options) -> Denoiser:
    """Stable Diffusion 1.x and 2.x (arXiv 2112.10752)."""
    unet, text = parts.load("unet", "UNet2DConditionModel"), parts.load("text_encoder", "CLIPTextModel")
    if text.config.__dict__.get("use_attention_mask"):
        raise UserError(f"{parts.folder}: a text encoder with use_attention_mask is not supported")
    check_unet(unet, parts)
    vae = parts.vae(options, unet.config.in_channels)
    size = size_of(options, unet.config.sample_size, factor_of(vae))
    prompt = parts.tokens("tokenizer", text)
    embeds = Condition((*prompt.shape, text.config.hidden_size), description="the prompt's embedding")
    return parts.denoiser(
        UNet(unet),
        Inputs(latents(unet, size, vae), {"prompt_embeds": embeds}),
        Encoder(LastHidden(text), {"prompt": prompt}, ("prompt_embeds",)),
        vae,
        size,
    )


def check_unet(unet: Any, parts: Parts, addition: str | None = None) -> None:
    """Raises UserError for U-Nets that are told more than the pipeline's class says, as of inpainting."""
    config = unet.config
    if config.in_channels != config.out_channels:
        raise UserError(f"{parts.folder}: its U-Net is told an image beside the latents, which is not supported")
    for setting, allowed in (
        ("addition_embed_type", addition),
        ("class_embed_type", None),
        ("num_class_embeds", None),
        ("encoder_hid_dim_type", None),
        ("time_cond_proj_dim", None),
        ("time_embedding_type", "positional"),
    ):
        if config.get(setting) != allowed:
            raise UserError(f"{parts.folder}: its U-Net's {setting} is {config[setting]!r}, which is not supported")


def latents(network: Any, size: tuple[int, int], vae: Any) -> tuple[int, int, int]:
    """The shape of an image's latents."""
    return network.config.in_channels, size[0] // factor_of(vae), size[1] // factor_of(vae)


class UNet(nn.Module):
    """Latents [n, c, h, w], step [n or 1], the prompt's embedding [n, length, d] → [n, c, h, w]."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, step: Tensor, prompt_embeds: Tensor) -> Tensor:
        # diffusers repeats the step for each image; taken as it came, a graph can compute its embedding beforehand
        with self.unet.time_proj.register_forward_pre_hook(lambda *_: (step,)):
            return self.unet(x, step, prompt_embeds, return_dict=False)[0]


class LastHidden(nn.Module):
    """Token ids [n, length] → the text encoder's last states, [n, length, d]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor) -> tuple[Tensor]:
        return (self.encoder(prompt)[0],)


PIPELINES: dict[str, Callable[[Parts, Options], Denoiser]] = {
    "StableDiffusionPipeline": stable_diffusion,
}


def class_name(folder: Path) -> str | None:
    """What a folder's model_index.json calls its pipeline; None where it has none that can be read."""
    try:
        return json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError):
        return None


def recognises(folder: Path) -> bool:
    return class_name(folder) not in (None, *UNCONDITIONAL)


def load(folder: Path, options: Options) -> Denoiser:
    name = class_name(folder)
    if name not in PIPELINES:
        known = ", ".join((*PIPELINES, *UNCONDITIONAL[:3]))
        raise UserError(f"{folder} is a {name}, which is not supported; supported: {known}")
    return PIPELINES[name](Parts.read(folder), options)


FAMILY = Family("text-to-image pipelines of diffusers", recognises, load)
