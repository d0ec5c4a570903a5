"""The models that are known by name, one row each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sampler.models.published import EDM2_URL, EDM_URL, HUB, OPENAI_URL, adm, iddpm, imagenet

WEIGHTS = Path(__file__).parent / "weights"

TOKENIZER = WEIGHTS / "flow-emoji-tokenizer.json"  # of Hugging Face's tokenizers; models.training.emoji writes both
CAPTIONS = WEIGHTS / "flow-emoji-captions.txt"
EDM_LICENCE = "CC BY-NC-SA 4.0"

DDPMPP: dict[str, Any] = {
    "precond": "EDMPrecond",
    "img_channels": 3,
    "model_type": "SongUNet",
    "augment_dim": 9,
    "model_channels": 128,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
}
NCSNPP = DDPMPP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CIFAR10 = {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13}
FFHQ = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}
AFHQV2 = FFHQ | {"dropout": 0.25}
IMAGENET64: dict[str, Any] = {
    "precond": "EDMPrecond",
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "dropout": 0.1,
}
DIGITS: dict[str, Any] = {
    "precond": "EDMPrecond",
    "img_resolution": 8,
    "img_channels": 1,
    "model_type": "SongUNet",
    "model_channels": 32,
    "channel_mult": [2, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.0,
}
FASHION: dict[str, Any] = {
    "precond": "EDMPrecond",
    "img_resolution": 28,
    "img_channels": 1,
    "sigma_data": 0.7,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2, 4],
    "num_blocks": 1,
    "attn_resolutions": [7],
    "dropout": 0.0,
}
EMOJI: dict[str, Any] = {
    "precond": "FlowPrecond",
    "img_resolution": 32,
    "img_channels": 3,
    "patch": 2,
    "text": {"tokenizer": TOKENIZER.read_text(), "width": 128, "layers": 2},
    "model_type": "DhariwalUNet",
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
LSUN = iddpm(
    256,
    [1, 1, 2, 2, 4, 4],
    num_blocks=2,
    attn_resolutions=[16],
    num_heads=1,
    use_scale_shift_norm=False,
    beta_schedule="linear",
    num_train_timesteps=1000,
)
DDPM: dict[str, Any] = {  # of arXiv 2006.11239, as diffusers has it
    "precond": "DDPMPrecond",
    "model_type": "UNet2DModel",
    "img_channels": 3,
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
DDPM_CIFAR10: dict[str, Any] = DDPM | {
    "img_resolution": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
DDPM_256: dict[str, Any] = DDPM | {
    "img_resolution": 256,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}
DIGITS_LICENCE = "Apache-2.0; trained on scikit-learn's digits (CC BY 4.0)"
EMOJI_LICENCE = "Apache-2.0; trained on Noto Color Emoji (OFL-1.1)"
FASHION_LICENCE = "Apache-2.0; trained on Fashion-MNIST (MIT)"


@dataclass(frozen=True)
class ZooRow:
    """One model. ``source`` is a file of models/weights, a URL, or a page of the hub."""

    architecture: dict[str, Any]
    source: str
    licence: str
    shapes_sha256: str | None = None  # of the tensors' names and shapes
    examples: Path | None = None  # captions to fit and to judge on, one a line


@dataclass(frozen=True)
class Group:
    """Models of one kind, and what of them is verified."""

    title: str
    verified: str
    rows: dict[str, ZooRow]


def _official(architecture: dict[str, Any], file: str, shapes_sha256: str) -> ZooRow:
    return ZooRow(architecture, EDM_URL + file, EDM_LICENCE, shapes_sha256)


def _hub(architecture: dict[str, Any], name: str) -> ZooRow:
    return ZooRow(architecture, HUB + name, "Apache-2.0")


def _openai(architecture: dict[str, Any], file: str) -> ZooRow:
    return ZooRow(architecture, OPENAI_URL + file, "MIT")


def _edm2(architecture: dict[str, Any], file: str) -> ZooRow:
    return ZooRow(architecture, EDM2_URL + file, EDM_LICENCE)


CIFAR10_VP = "5b64854adf30015fc75adc6c061a84a176303695d0be57736e9ec7344e4f6f6d"
CIFAR10_VE = "ea8d0e56f3c0f15893049ab65d6e0a2ed29fa07e384b612f314272c96d5f6ddb"
CIFAR10_COND_VP = "2fa7b34b55c2aa1fc001e382c05cd6643319622b15ced94970e27ca34bc10aff"
CIFAR10_COND_VE = "6b4cc86820049f0537433e4b9b12dc96d7816fb858ac0cedd57c90ec663f6618"
FACES_VP = "f955a245c76e4839819177d868c0e2f846c241e4e0c2aee27ae54e6ad7616118"
FACES_VE = "e4fe182e5798b3d949ae846df8496137a3138a54d2f56fccf651427f36a6bcd7"
IMAGENET = "462dae53f27654f3f7f3167272cd08cacea1aa52fa444c18ace4a3e3e682a4ae"

GROUPS = (
    Group(
        "Small ones that ship",
        "fits, graphs and engines of them are made and compared in every run of the tests; edm-fashion ran on an H100",
        {
            "edm-digits": ZooRow(DIGITS, "edm-digits.safetensors", DIGITS_LICENCE),
            "flow-digits": ZooRow(DIGITS | {"precond": "FlowPrecond"}, "flow-digits.safetensors", DIGITS_LICENCE),
            "edm-fashion": ZooRow(FASHION, "edm-fashion.safetensors", FASHION_LICENCE),
            "edm-fashion-cond": ZooRow(
                FASHION | {"label_dim": 10, "label_dropout": 0.1}, "edm-fashion-cond.safetensors", FASHION_LICENCE
            ),
            "ddim-fashion": ZooRow(FASHION | {"precond": "DDPMPrecond"}, "ddim-fashion.safetensors", FASHION_LICENCE),
            "flow-emoji": ZooRow(EMOJI, "flow-emoji.safetensors", EMOJI_LICENCE, examples=CAPTIONS),
        },
    ),
    Group(
        "EDM's checkpoints (arXiv 2206.00364)",
        "parity with EDM's own code on six small networks, names and shapes of all nine files; graphs with random "
        "weights, the published ones were never at hand",
        {
            "edm-cifar10": _official(DDPMPP | CIFAR10, "edm-cifar10-32x32-uncond-vp.pkl", CIFAR10_VP),
            "edm-cifar10-ve": _official(NCSNPP | CIFAR10, "edm-cifar10-32x32-uncond-ve.pkl", CIFAR10_VE),
            "edm-cifar10-cond": _official(
                DDPMPP | CIFAR10 | {"label_dim": 10}, "edm-cifar10-32x32-cond-vp.pkl", CIFAR10_COND_VP
            ),
            "edm-cifar10-cond-ve": _official(
                NCSNPP | CIFAR10 | {"label_dim": 10}, "edm-cifar10-32x32-cond-ve.pkl", CIFAR10_COND_VE
            ),
            "edm-ffhq": _official(DDPMPP | FFHQ, "edm-ffhq-64x64-uncond-vp.pkl", FACES_VP),
            "edm-ffhq-ve": _official(NCSNPP | FFHQ, "edm-ffhq-64x64-uncond-ve.pkl", FACES_VE),
            "edm-afhqv2": _official(DDPMPP | AFHQV2, "edm-afhqv2-64x64-uncond-vp.pkl", FACES_VP),
            "edm-afhqv2-ve": _official(NCSNPP | AFHQV2, "edm-afhqv2-64x64-uncond-ve.pkl", FACES_VE),
            "edm-imagenet64": _official(IMAGENET64, "edm-imagenet-64x64-cond-adm.pkl", IMAGENET),
        },
    ),
    Group(
        "OpenAI's guided-diffusion (arXiv 2105.05233)",
        "parity with its own code on two small networks, sizes as published; the published weights were never at hand",
        {
            "adm-imagenet64": _openai(
                adm(
                    64,
                    [1, 2, 3, 4],
                    1000,
                    model_channels=192,
                    num_blocks=3,
                    beta_schedule="squaredcos_cap_v2",
                    new_attention_order=True,
                ),
                "jul-2021/64x64_diffusion.pt",
            ),
            "adm-imagenet128": _openai(adm(128, [1, 1, 2, 3, 4], 1000, num_heads=4), "jul-2021/128x128_diffusion.pt"),
            "adm-imagenet256": _openai(adm(256, [1, 1, 2, 2, 4, 4], 1000), "jul-2021/256x256_diffusion.pt"),
            "adm-imagenet256-uncond": _openai(adm(256, [1, 1, 2, 2, 4, 4]), "jul-2021/256x256_diffusion_uncond.pt"),
            "adm-imagenet512": _openai(adm(512, [0.5, 1, 1, 2, 2, 4, 4], 1000), "jul-2021/512x512_diffusion.pt"),
            "adm-lsun-bedroom": _openai(adm(256, [1, 1, 2, 2, 4, 4]), "jul-2021/lsun_bedroom.pt"),
            "adm-lsun-cat": _openai(adm(256, [1, 1, 2, 2, 4, 4]), "jul-2021/lsun_cat.pt"),
            "adm-lsun-horse": _openai(adm(256, [1, 1, 2, 2, 4, 4]), "jul-2021/lsun_horse.pt"),
        },
    ),
    Group(
        "OpenAI's improved-diffusion (arXiv 2102.09672)",
        "parity with its own code on two small networks; the published weights were never at hand",
        {
            "iddpm-cifar10": _openai(iddpm(32, [1, 2, 2, 2]), "march-2021/cifar10_uncond_50M_500K.pt"),
            "iddpm-cifar10-vlb": _openai(iddpm(32, [1, 2, 2, 2]), "march-2021/cifar10_uncond_vlb_50M_500K.pt"),
            "iddpm-imagenet64": _openai(iddpm(64, [1, 2, 3, 4]), "march-2021/imagenet64_uncond_100M_1500K.pt"),
            "iddpm-imagenet64-vlb": _openai(iddpm(64, [1, 2, 3, 4]), "march-2021/imagenet64_uncond_vlb_100M_1500K.pt"),
            "iddpm-imagenet64-cond": _openai(
                iddpm(64, [1, 2, 3, 4], 1000, model_channels=192, rescale_timesteps=False),
                "march-2021/imagenet64_cond_270M_250K.pt",
            ),
            "iddpm-lsun-bedroom": _openai(LSUN, "march-2021/lsun_uncond_100M_1200K_bs128.pt"),
            "iddpm-lsun-bedroom-bs64": _openai(LSUN, "march-2021/lsun_uncond_100M_2400K_bs64.pt"),
        },
    ),
    Group(
        "EDM2's checkpoints (arXiv 2312.02696)",
        "parity with EDM2's own code on three small networks, sizes as published; the published weights were never at "
        "hand. Those of 512×512 make latents, which --vae decodes",
        {
            "edm2-img64-s": _edm2(imagenet(192), "edm2-img64-s-1073741-0.075.pkl"),
            "edm2-img64-m": _edm2(imagenet(256, 0.1), "edm2-img64-m-2147483-0.060.pkl"),
            "edm2-img64-l": _edm2(imagenet(320, 0.1), "edm2-img64-l-1073741-0.040.pkl"),
            "edm2-img64-xl": _edm2(imagenet(384, 0.1), "edm2-img64-xl-0671088-0.040.pkl"),
            "edm2-img512-xs": _edm2(imagenet(128, latents=True), "edm2-img512-xs-2147483-0.135.pkl"),
            "edm2-img512-s": _edm2(imagenet(192, latents=True), "edm2-img512-s-2147483-0.130.pkl"),
            "edm2-img512-m": _edm2(imagenet(256, 0.1, latents=True), "edm2-img512-m-2147483-0.100.pkl"),
            "edm2-img512-l": _edm2(imagenet(320, 0.1, latents=True), "edm2-img512-l-1879048-0.085.pkl"),
            "edm2-img512-xl": _edm2(imagenet(384, 0.1, latents=True), "edm2-img512-xl-1342177-0.085.pkl"),
            "edm2-img512-xxl": _edm2(imagenet(448, 0.1, latents=True), "edm2-img512-xxl-0939524-0.070.pkl"),
        },
    ),
    Group(
        "DDPMs of Google (arXiv 2006.11239)",
        "parity with diffusers at full depth; graphs with random weights, the published ones were never at hand",
        {
            "ddim-cifar10": _hub(DDPM_CIFAR10, "google/ddpm-cifar10-32"),
            "ddim-lsun-bedroom": _hub(DDPM_256, "google/ddpm-bedroom-256"),
            "ddim-lsun-bedroom-ema": _hub(DDPM_256, "google/ddpm-ema-bedroom-256"),
            "ddim-lsun-church": _hub(DDPM_256, "google/ddpm-church-256"),
            "ddim-lsun-church-ema": _hub(DDPM_256, "google/ddpm-ema-church-256"),
            "ddim-celebahq": _hub(DDPM_256, "google/ddpm-celebahq-256"),
            "ddim-celebahq-ema": _hub(DDPM_256, "google/ddpm-ema-celebahq-256"),
        },
    ),
)
ZOO = {name: row for group in GROUPS for name, row in group.rows.items()}
