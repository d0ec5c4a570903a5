"""Text-to-image pipelines of diffusers whose network is a transformer: Stable Diffusion 3, Flux and PixArt."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.families.base import Options
from edge_sampler.models.families.parts import GUIDANCE, Parts, factor_of, size_of
from edge_sampler.models.own import Encoder
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs

LONG_PROMPT = {"StableDiffusion3": 256, "Flux": 512, "PixArtAlpha": 120, "PixArtSigma": 300}  # tokens of T5


def stable_diffusion_3(parts: Parts, options: Options) -> Denoiser:
    """Stable Diffusion 3 (arXiv 2403.03206); its third text encoder, T5, may be left out."""
    network = parts.load("transformer", "SD3Transformer2DModel")
    clip = [parts.load(name, "CLIPTextModelWithProjection") for name in ("text_encoder", "text_encoder_2")]
    t5 = parts.load("text_encoder_3", "T5EncoderModel") if (parts.index.get("text_encoder_3") or [None])[0] else None
    vae = parts.vae(options, network.config.in_channels)
    size = patches(options, network, factor_of(vae))
    prompts = {
        "prompt": parts.tokens("tokenizer", clip[0]),
        "prompt_2": parts.tokens("tokenizer_2", clip[1], follows="prompt"),
    }
    length = LONG_PROMPT["StableDiffusion3"]
    if t5:
        prompts["prompt_3"] = parts.tokens("tokenizer_3", t5, length, follows="prompt")
        length = int(prompts["prompt_3"].shape[0])
    width, first = network.config.joint_attention_dim, int(prompts["prompt"].shape[0])
    conditions = {
        "prompt_embeds": Condition((first + length, width), description="the prompt's embedding"),
        "pooled_embeds": Condition((sum(one.config.projection_dim for one in clip),), description="the whole prompt's"),
    }
    return parts.denoiser(
        SD3(network),
        Inputs((network.config.in_channels, *latents(size, factor_of(vae))), conditions),
        Encoder(ThreeEncoders(clip[0], clip[1], t5, length, width), prompts, tuple(conditions)),
        vae,
        size,
        shift=partial(shifted, tokens=tokens_of(size, factor_of(vae) * network.config.patch_size), default=1.16),
    )


class SD3(nn.Module):
    """Latents [n, c, h, w], 1000·t [n or 1] and what the prompt became → noise - data, [n, c, h, w]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, time: Tensor, prompt_embeds: Tensor, pooled_embeds: Tensor) -> Tensor:
        return self.network(x, prompt_embeds, pooled_embeds, time, return_dict=False)[0]


class ThreeEncoders(nn.Module):
    """Token ids [n, length] of each tokenizer → embeddings one behind the other [n, lengths, d], and pooled ones."""

    def __init__(self, first: Any, second: Any, third: Any, length: int, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = first, second, third
        self.length, self.width = length, width

    def forward(self, prompt: Tensor, prompt_2: Tensor, prompt_3: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = self.first(prompt, output_hidden_states=True)
        second = self.second(prompt_2, output_hidden_states=True)
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        clip = nn.functional.pad(clip, (0, self.width - clip.shape[-1]))
        long = nn.functional.pad(clip[:, :1] * 0, (0, 0, 0, self.length - 1)) if prompt_3 is None else None
        told = self.third(prompt_3)[0] if long is None else long
        return torch.cat([clip, told], 1), torch.cat([first[0], second[0]], -1)


def flux(parts: Parts, options: Options) -> Denoiser:
    """Flux.1; the network of dev is told its guidance."""
    network = parts.load("transformer", "FluxTransformer2DModel")
    clip, t5 = parts.load("text_encoder", "CLIPTextModel"), parts.load("text_encoder_2", "T5EncoderModel")
    channels = network.config.in_channels // 4
    vae = parts.vae(options, channels)
    size = size_of(options, 128, 2 * factor_of(vae) if options.size else factor_of(vae))
    prompts = {
        "prompt": parts.tokens("tokenizer", clip),
        "prompt_2": parts.tokens("tokenizer_2", t5, LONG_PROMPT["Flux"], follows="prompt"),
    }
    length = int(prompts["prompt_2"].shape[0])
    conditions = {
        "prompt_embeds": Condition((length, t5.config.d_model), description="the prompt's embedding"),
        "pooled_embeds": Condition((clip.config.hidden_size,), description="the whole prompt's embedding"),
    }
    high, wide = latents(size, factor_of(vae))
    return parts.denoiser(
        Flux(network, high // 2, wide // 2, length),
        Inputs(
            (channels, high, wide),
            conditions | ({"guidance_scale": GUIDANCE} if network.config.guidance_embeds else {}),
        ),
        Encoder(PooledAndLong(clip, t5), prompts, tuple(conditions)),
        vae,
        size,
        shift=partial(shifted, tokens=high * wide // 4, default=1.15, linear=True),
    )


class Flux(nn.Module):
    """Latents [n, c, h, w], 1000·t [n or 1] and what the prompt became → noise - data; its tokens are 2×2 latents."""

    def __init__(self, network: Any, high: int, wide: int, length: int) -> None:
        super().__init__()
        self.network = network
        places = torch.zeros(high, wide, 3)
        places[..., 1], places[..., 2] = torch.arange(high)[:, None], torch.arange(wide)
        self.register_buffer("places", places.flatten(0, 1), persistent=False)
        self.register_buffer("text_places", torch.zeros(length, 3), persistent=False)
        self.high, self.wide = high, wide

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        prompt_embeds: Tensor,
        pooled_embeds: Tensor,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        n, channels = x.shape[:2]
        cells = x.reshape(n, channels, self.high, 2, self.wide, 2).permute(0, 2, 4, 1, 3, 5)
        tokens = cells.reshape(n, self.high * self.wide, 4 * channels)
        answer = self.network(
            tokens,
            prompt_embeds,
            pooled_embeds,
            time / 1000,
            self.get_buffer("places"),
            self.get_buffer("text_places"),
            guidance_scale,
            return_dict=False,
        )[0]
        cells = answer.reshape(n, self.high, self.wide, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return cells.reshape(n, channels, 2 * self.high, 2 * self.wide)


class PooledAndLong(nn.Module):
    """Token ids of CLIP's and T5's tokenizers → T5's embedding [n, length, d], CLIP's pooled one [n, d]."""

    def __init__(self, clip: Any, t5: Any) -> None:
        super().__init__()
        self.clip, self.t5 = clip, t5

    def forward(self, prompt: Tensor, prompt_2: Tensor) -> tuple[Tensor, Tensor]:
        return self.t5(prompt_2)[0], self.clip(prompt).pooler_output


def pixart(parts: Parts, options: Options, kind: str) -> Denoiser:
    """PixArt-α (arXiv 2310.00426) and Σ (2403.04692)."""
    network, t5 = parts.load("transformer", "PixArtTransformer2DModel"), parts.load("text_encoder", "T5EncoderModel")
    vae = parts.vae(options, network.config.in_channels)
    size = patches(options, network, factor_of(vae))
    prompt = parts.tokens("tokenizer", t5, LONG_PROMPT[kind], lower=True)
    length = int(prompt.shape[0])
    conditions = {
        "prompt_embeds": Condition((length, t5.config.d_model), description="the prompt's embedding"),
        "prompt_mask": Condition((length,), description="1 where there is a token of the prompt"),
    }
    return parts.denoiser(
        PixArt(network, size),
        Inputs((network.config.in_channels, *latents(size, factor_of(vae))), conditions),
        Encoder(Masked(t5), {"prompt": prompt}, tuple(conditions)),
        vae,
        size,
    )


class PixArt(nn.Module):
    """Latents [n, c, h, w], step [n or 1] and what the prompt became → the noise and its variance, [n, 2c, h, w]."""

    def __init__(self, network: Any, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("size", torch.tensor([[*size, size[0] / size[1]]]), persistent=False)

    def forward(self, x: Tensor, step: Tensor, prompt_embeds: Tensor, prompt_mask: Tensor) -> Tensor:
        n, network, size = x.shape[0], self.network, self.get_buffer("size")

        def for_all(module: nn.Module, given: Any, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return made[0].expand(n, made[0].shape[1]), made[1]  # the step's embedding was made of one step for all

        told = {"resolution": size[:, :2].expand(n, 2), "aspect_ratio": size[:, 2:].expand(n, 1)}
        with network.adaln_single.register_forward_hook(for_all):
            return network(
                x,
                prompt_embeds,
                step,
                told if network.use_additional_conditions else None,
                encoder_attention_mask=prompt_mask,
                return_dict=False,
            )[0]


class Masked(nn.Module):
    """Token ids [n, length] → T5's embedding [n, length, d], and 1 where they are not padding, [n, length]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, prompt: Tensor) -> tuple[Tensor, Tensor]:
        mask = prompt != self.encoder.config.pad_token_id
        return self.encoder(prompt, attention_mask=mask)[0], mask.float()


def patches(options: Options, network: Any, factor: int) -> tuple[int, int]:
    """The images' size, whole patches of latents. Raises UserError beyond the places that the network knows."""
    config = network.config
    size = size_of(options, config.sample_size, factor * config.patch_size if options.size else factor)
    largest = config.get("pos_embed_max_size")
    if largest and max(latents(size, factor * config.patch_size)) > largest:
        most = largest * factor * config.patch_size
        raise UserError(f"--size {size[0]}x{size[1]}: the network knows the places of {most}x{most} at the most")
    return size


def latents(size: tuple[int, int], factor: int) -> tuple[int, int]:
    return size[0] // factor, size[1] // factor


def tokens_of(size: tuple[int, int], factor: int) -> int:
    return math.prod(latents(size, factor))


def shifted(steps: int, config: Any, tokens: int, default: float, linear: bool = False) -> dict[str, Any]:
    """What the pipeline tells its scheduler: how far to shift the times, by the number of an image's ``tokens``.

    ``linear``: times that are uniform before the shift, down to 1/steps.
    """
    told: dict[str, Any] = {"sigmas": np.linspace(1, 1 / steps, steps)} if linear else {"num_inference_steps": steps}
    if config.get("use_dynamic_shifting"):
        few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", default)
        told["mu"] = low + (tokens - few) * (high - low) / (many - few)
    return told


PIPELINES: dict[str, Callable[[Parts, Options], Denoiser]] = {
    "FluxPipeline": flux,
    "PixArtAlphaPipeline": partial(pixart, kind="PixArtAlpha"),
    "PixArtSigmaPipeline": partial(pixart, kind="PixArtSigma"),
    "StableDiffusion3Pipeline": stable_diffusion_3,
}
