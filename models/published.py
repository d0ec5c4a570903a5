"""Where published checkpoints are, and the arguments of their networks. Any install can list them: no PyTorch here."""

from typing import Any

HUB = "https://huggingface.co/"
EDM_URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
EDM2_URL = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/"
OPENAI_URL = "https://openaipublic.blob.core.windows.net/diffusion/"
LATENTS = {"mean": [5.81, 3.25, 0.12, -2.15], "std": [8.34, 9.24, 7.42, 6.56]}  # training/encoders.py: raw_std / 0.5


def adm(resolution: int, mult: list[float], classes: int = 0, **changes: Any) -> dict[str, Any]:
    """The arguments of a published checkpoint of guided-diffusion. At 32, 16 and 8 pixels its blocks attend."""
    return {
        "precond": "DDPMPrecond",
        "model_type": "DhariwalUNet",
        "img_resolution": resolution,
        "img_channels": 3,
        "out_channels": 6,  # noise and variance
        "label_dim": classes,
        "model_channels": 256,
        "channel_mult": mult,
        "num_blocks": 2,
        "attn_resolutions": [32, 16, 8],
        "dropout": 0.0,
        "new_attention_order": False,
        **changes,
    }


def iddpm(resolution: int, mult: list[float], classes: int = 0, **changes: Any) -> dict[str, Any]:
    """The same of improved-diffusion: four heads, and convolutions that halve and double."""
    return adm(resolution, mult, classes) | {
        "model_channels": 128,
        "num_blocks": 3,
        "attn_resolutions": [16, 8],
        "num_heads": 4,
        "resblock_updown": False,
        "beta_schedule": "squaredcos_cap_v2",
        "num_train_timesteps": 4000,
        "rescale_timesteps": True,
        **changes,
    }


def imagenet(channels: int, dropout: float = 0.0, latents: bool = False) -> dict[str, Any]:
    """The arguments of a published checkpoint, of ImageNet's pixels at 64×64 or of its latents at 512×512."""
    return {
        "precond": "EDMPrecond",
        "model_type": "EDM2UNet",
        "img_resolution": 64,
        "img_channels": 4 if latents else 3,
        "label_dim": 1000,
        "model_channels": channels,
        "dropout": dropout,
        **({"latents": LATENTS} if latents else {}),
    }
