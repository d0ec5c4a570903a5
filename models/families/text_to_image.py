"""Text-to-image pipelines of diffusers, by the class that a folder's model_index.json names."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Family, Options
from edge_sampler.models.families.diffusion_transformers import PIPELINES as TRANSFORMERS
from edge_sampler.models.families.parts import GUIDANCE, Parts, factor_of, size_of
from edge_sampler.models.own import Encoder
from edge_sampler.models.pipeline import INDEX
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs
from edge_sampler.runtime.json_file import read_json
from edge_sampler.runtime.text import tokenized


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
        Inputs(latents(unet, size, vae), {"prompt_embeds": embeds, **guidance_of(unet)}),
        Encoder(LastHidden(text), {"prompt": prompt}, ("prompt_embeds",)),
        vae,
        size,
    )


def stable_diffusion_xl(parts: Parts, options: Options) -> Denoiser:
    """SDXL (arXiv 2307.01952): two text encoders, and the images' size is told to the network."""
    unet = parts.load("unet", "UNet2DConditionModel")
    texts = parts.load("text_encoder", "CLIPTextModel"), parts.load("text_encoder_2", "CLIPTextModelWithProjection")
    check_unet(unet, parts, "text_time")
    vae = parts.vae(options, unet.config.in_channels)
    size = size_of(options, unet.config.sample_size, factor_of(vae))
    prompts = {
        "prompt": parts.tokens("tokenizer", texts[0]),
        "prompt_2": parts.tokens("tokenizer_2", texts[1], follows="prompt"),
    }
    width = sum(text.config.hidden_size for text in texts)
    conditions = {
        "prompt_embeds": Condition((*prompts["prompt"].shape, width), description="the prompt's embedding"),
        "pooled_embeds": Condition((texts[1].config.projection_dim,), description="the whole prompt's embedding"),
    }
    nothing = prompts["prompt"] if parts.index.get("force_zeros_for_empty_prompt", True) else None
    return parts.denoiser(
        SizedUNet(unet, size),
        Inputs(latents(unet, size, vae), conditions | guidance_of(unet)),
        Encoder(TwoEncoders(*texts, nothing), prompts, tuple(conditions)),
        vae,
        size,
        [nothing is None],
    )


def latent_diffusion(parts: Parts, options: Options) -> Denoiser:
    """Latent diffusion without a prompt, of a quantised or a continuous autoencoder (arXiv 2112.10752)."""
    unet = parts.load("unet", "UNet2DModel")
    if unet.config.in_channels != unet.config.out_channels or unet.config.num_class_embeds:
        raise UserError(f"{parts.folder}: its U-Net is told more than latents, which is not supported")
    vae = parts.vae(options, unet.config.in_channels, "vqvae", ("VQModel", "AutoencoderKL"))
    size = size_of(options, unet.config.sample_size, factor_of(vae))
    return parts.denoiser(UNet(unet), Inputs(latents(unet, size, vae)), None, vae, size)


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
        ("time_embedding_type", "positional"),
    ):
        if config.get(setting) != allowed:
            raise UserError(f"{parts.folder}: its U-Net's {setting} is {config[setting]!r}, which is not supported")


def guidance_of(unet: Any) -> dict[str, Condition]:
    """The condition of networks that were distilled from guided ones (latent consistency models, arXiv 2310.04378)."""
    return {"guidance_scale": GUIDANCE} if unet.config.time_cond_proj_dim else {}


def latents(network: Any, size: tuple[int, int], vae: Any) -> tuple[int, int, int]:
    """The shape of an image's latents."""
    return network.config.in_channels, size[0] // factor_of(vae), size[1] // factor_of(vae)


class UNet(nn.Module):
    """Latents [n, c, h, w], step [n or 1], and a prompt's embedding [n, length, d] or none → [n, c, h, w].

    Where it is told its guidance, ``guidance_scale`` is [n].
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        prompt_embeds: Tensor | None = None,
        guidance_scale: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        told = () if prompt_embeds is None else (prompt_embeds,)
        if guidance_scale is not None:
            more["timestep_cond"] = guidance_embedding(guidance_scale, self.unet.config.time_cond_proj_dim)
        # diffusers repeats the step for each image; taken as it came, a graph can compute its embedding beforehand
        with self.unet.time_proj.register_forward_pre_hook(lambda *_: (step,)):
            return self.unet(x, step, *told, **more, return_dict=False)[0]


class SizedUNet(UNet):
    """The same, told the whole prompt's embedding [n, d] too, and that images are whole and of this ``size``."""

    def __init__(self, unet: Any, size: tuple[int, int]) -> None:
        super().__init__(unet)
        self.register_buffer("time_ids", torch.tensor([[*size, 0.0, 0.0, *size]]), persistent=False)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        step: Tensor,
        prompt_embeds: Tensor,
        pooled_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        sizes = self.get_buffer("time_ids").expand(pooled_embeds.shape[0], 6)
        more = {"text_embeds": pooled_embeds, "time_ids": sizes}
        return super().forward(x, step, prompt_embeds, guidance_scale, added_cond_kwargs=more)


def guidance_embedding(scale: Tensor, width: int) -> Tensor:
    """Sines and cosines [n, width] of 1000·(scale - 1), scale [n], as latent consistency models are told it."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=scale.device))
    angles = 1000 * (scale[:, None] - 1) * frequencies
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


class LastHidden(nn.Module):
    """Token ids [n, length] → the text encoder's last states, [n, length, d]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor) -> tuple[Tensor]:
        return (self.encoder(prompt)[0],)


class TwoEncoders(nn.Module):
    """Token ids [n, length] of two tokenizers → both encoders' last states but one, side by side; the second's pooled.

    The ids of ``nothing``, the empty text, → zeros, where the network was trained so.
    """

    def __init__(self, first: Any, second: Any, nothing: Condition | None) -> None:
        super().__init__()
        self.first, self.second = first, second
        ids = torch.from_numpy(tokenized({"prompt": nothing}, {"prompt": ""})["prompt"]) if nothing else None
        self.register_buffer("nothing", ids, persistent=False)

    def forward(self, prompt: Tensor, prompt_2: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(prompt, output_hidden_states=True)
        second = self.second(prompt_2, output_hidden_states=True)
        embeds, pooled = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second[0]
        if self.nothing is None:
            return embeds, pooled
        told = prompt.ne(self.get_buffer("nothing")).any(1).float()
        return embeds * told[:, None, None], pooled * told[:, None]


PIPELINES: dict[str, Callable[[Parts, Options], Denoiser]] = {
    "LatentConsistencyModelPipeline": stable_diffusion,
    "LDMPipeline": latent_diffusion,
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    **TRANSFORMERS,
}


def index_of(folder: Path) -> dict[str, Any] | None:
    """What a folder's model_index.json holds; None where it has none that can be read."""
    try:
        index = read_json(folder / INDEX)
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) else None


def recognises(folder: Path) -> bool:
    """Whether it is a pipeline that is more than a U-Net of images, which ``models.pipeline`` reads."""
    index = index_of(folder)
    if index is None:
        return False
    parts = {name: part[1] for name, part in index.items() if isinstance(part, list) and len(part) == 2 and part[1]}
    return not (parts.keys() <= {"unet", "scheduler"} and parts.get("unet") == "UNet2DModel")


def load(folder: Path, options: Options) -> Denoiser:
    index = index_of(folder)
    assert index is not None
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        known = ", ".join(("DDPMPipeline", "DDIMPipeline", *PIPELINES))
        raise UserError(f"{folder} is a {name}, which is not supported; supported: {known}")
    return PIPELINES[name](Parts.of(folder, index, options.loras), options)


FAMILY = Family(
    "text-to-image pipelines of diffusers",
    recognises,
    load,
    tuple(PIPELINES),
    "each class, small and with random weights, makes the latents of diffusers' own loop (latent consistency "
    "models: in one step)",
)
