"""Pipelines of diffusers, small and with random weights, in a folder as diffusers saves them."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from edge_sampler.models.architecture import randomise

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = ("h e", "a r", "ar t</w>")
WIDTH, LENGTH = 32, 16  # of the text encoder; tokens
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def clip_tokenizer(folder: Path) -> Any:
    """Of letters and three longer tokens; begin 55, end and padding 56."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def clip_config(**changes: Any) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=57,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        bos_token_id=55,
        eos_token_id=56,
        pad_token_id=56,
        **changes,
    )


def unet(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 8,
    }
    return diffusers.UNet2DConditionModel(**settings | changes)


def autoencoder(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 32,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return diffusers.AutoencoderKL(**settings | changes)


def stable_diffusion(folder: Path, scheduler: Any = None, **schedule: Any) -> Any:
    """Its pipeline, saved in ``folder``: images of 32×32, latents half as large."""
    scheduler = scheduler or diffusers.DDIMScheduler(**SCHEDULE | schedule)
    return told_one_text(diffusers.StableDiffusionPipeline, folder, scheduler)


def latent_consistency(folder: Path) -> Any:
    """Stable Diffusion whose network is told its guidance."""
    scheduler = diffusers.LCMScheduler(**SCHEDULE)
    return told_one_text(diffusers.LatentConsistencyModelPipeline, folder, scheduler, time_cond_proj_dim=32)


def told_one_text(kind: Any, folder: Path, scheduler: Any, **changes: Any) -> Any:
    """A pipeline of Stable Diffusion's parts; ``changes`` are its U-Net's."""
    torch.manual_seed(0)
    pipeline = kind(
        vae=autoencoder(),
        text_encoder=transformers.CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(folder / "words"),
        unet=unet(**changes),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, folder)


def stable_diffusion_xl(folder: Path) -> Any:
    torch.manual_seed(0)
    tokenizers = [clip_tokenizer(folder / f"words{place}") for place in (0, 1)]
    tokenizers[1].pad_token = "z"  # SDXL's second pads with "!" and not with the token of the end
    pipeline = diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=transformers.CLIPTextModel(clip_config()).eval(),
        text_encoder_2=transformers.CLIPTextModelWithProjection(clip_config(projection_dim=24)).eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet(
            block_out_channels=(32,),  # of one size: the U-Net above has two
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )
    return saved(pipeline, folder)


def latent_diffusion(folder: Path) -> Any:
    """Of a U-Net that is told no prompt, and a quantised autoencoder."""
    torch.manual_seed(0)
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
    )
    decoder = diffusers.VQModel(
        block_out_channels=(16, 32),
        latent_channels=3,
        num_vq_embeddings=16,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    schedule = diffusers.DDIMScheduler(**SCHEDULE | {"set_alpha_to_one": True, "steps_offset": 0})
    return saved(diffusers.LDMPipeline(vqvae=decoder, unet=network, scheduler=schedule), folder)


def t5_tokenizer() -> Any:
    words = ["▁", "▁a", "▁red", "▁heart", "▁star", "▁blue"]
    vocabulary = [*((word, 0.0) for word in ("<pad>", "</s>", "<unk>")), *((word, -1.0) for word in words)]
    return transformers.T5TokenizerFast(vocab=vocabulary, model_max_length=LENGTH, extra_ids=0)


def t5(width: int = WIDTH) -> Any:
    config = transformers.T5Config(
        vocab_size=16, d_model=width, d_kv=8, d_ff=37, num_layers=1, num_heads=4, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config).eval()


def stable_diffusion_3(folder: Path, with_t5: bool = True) -> Any:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=48,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )
    clip = [transformers.CLIPTextModelWithProjection(clip_config(projection_dim=24)).eval() for _ in range(2)]
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=network,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip[0],
        tokenizer=clip_tokenizer(folder / "words"),
        text_encoder_2=clip[1],
        tokenizer_2=clip_tokenizer(folder / "words"),
        text_encoder_3=t5(2 * WIDTH) if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
    )
    return saved(pipeline, folder)


def flux(folder: Path, guidance_embeds: bool = True) -> Any:
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance_embeds,
    )
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=transformers.CLIPTextModel(clip_config()).eval(),
        tokenizer=clip_tokenizer(folder / "words"),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=network,
    )
    return saved(pipeline, folder)


def pixart(folder: Path, name: str) -> Any:
    torch.manual_seed(0)
    network = diffusers.PixArtTransformer2DModel(
        sample_size=128 if name == "Alpha" else 16,  # of 128 on, the network of α is told the images' size
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=6,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=48,
        out_channels=8,
    )
    torch.nn.init.normal_(network.proj_out.weight, std=0.1)
    pipeline = getattr(diffusers, f"PixArt{name}Pipeline")(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=network,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False),
    )
    return saved(pipeline, folder)


def saved(pipeline: Any, folder: Path) -> Any:
    pipeline.save_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ddpm(folder: Path, scheduler: Any = None, safe: bool = True, **changes: Any) -> Any:
    """A pipeline of a U-Net with lively weights that is told no text, saved in ``folder``; returns the U-Net."""
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    network = diffusers.UNet2DModel(**settings | changes)
    randomise(network, 0)
    whole = diffusers.DDPMPipeline(network, scheduler or diffusers.DDPMScheduler())
    whole.save_pretrained(folder, safe_serialization=safe)
    return network.eval().requires_grad_(False)
