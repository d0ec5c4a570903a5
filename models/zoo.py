"""The models that are known by name, one row each, and ``load``, which makes a denoiser of a name or a file."""

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models import checkpoint
from models.checkpoint import Checkpoint
from models.download import fetch
from models.layers import FourierEmbedding
from models.precond import Denoiser, ModelSpec
from runtime.errors import UserError

WEIGHTS = Path(__file__).parent / "weights"
SAMPLING_RANGE = (0.002, 80.0)  # arXiv 2206.00364, Table 1; a network's own limits narrow it

EDM_URL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
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
FASHION_LICENCE = "Apache-2.0; trained on Fashion-MNIST (MIT)"


@dataclass(frozen=True)
class ZooRow:
    """One model. ``source`` is a file of models/weights or a URL; ``shapes_sha256`` tells its architecture."""

    architecture: dict[str, Any]
    source: str
    licence: str
    shapes_sha256: str | None = None


def _official(architecture: dict[str, Any], file: str, shapes_sha256: str) -> ZooRow:
    return ZooRow(architecture, EDM_URL + file, EDM_LICENCE, shapes_sha256)


CIFAR10_VP = "5b64854adf30015fc75adc6c061a84a176303695d0be57736e9ec7344e4f6f6d"
CIFAR10_VE = "ea8d0e56f3c0f15893049ab65d6e0a2ed29fa07e384b612f314272c96d5f6ddb"
CIFAR10_COND_VP = "2fa7b34b55c2aa1fc001e382c05cd6643319622b15ced94970e27ca34bc10aff"
CIFAR10_COND_VE = "6b4cc86820049f0537433e4b9b12dc96d7816fb858ac0cedd57c90ec663f6618"
FACES_VP = "f955a245c76e4839819177d868c0e2f846c241e4e0c2aee27ae54e6ad7616118"
FACES_VE = "e4fe182e5798b3d949ae846df8496137a3138a54d2f56fccf651427f36a6bcd7"
IMAGENET = "462dae53f27654f3f7f3167272cd08cacea1aa52fa444c18ace4a3e3e682a4ae"

ZOO: dict[str, ZooRow] = {
    "edm-digits": ZooRow(DIGITS, "edm-digits.safetensors", "Apache-2.0; trained on scikit-learn's digits (CC BY 4.0)"),
    "edm-fashion": ZooRow(FASHION, "edm-fashion.safetensors", FASHION_LICENCE),
    "edm-fashion-cond": ZooRow(FASHION | {"label_dim": 10}, "edm-fashion-cond.safetensors", FASHION_LICENCE),
    "ddim-fashion": ZooRow(FASHION | {"precond": "DDPMPrecond"}, "ddim-fashion.safetensors", FASHION_LICENCE),
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
}


def load(model: str, weights: str | Path | None = None, random_weights: bool = False, seed: int = 0) -> Denoiser:
    """A denoiser in evaluation mode, on the CPU, float32.

    Args:
        model: a name of ``ZOO``; a checkpoint that describes itself (EDM .pkl, .safetensors with metadata); or a
            .json file with an architecture's arguments.
        weights: the checkpoint to load into that architecture, instead of the model's own.
        random_weights: random weights, seeded by ``seed``: a dry run, marked so in ``spec``.

    Raises UserError for an unknown name, a bad file, or weights of another architecture.
    """
    row = ZOO.get(model)
    own: Checkpoint | None = None
    if row is not None:
        name, architecture, licence = model, row.architecture, row.licence
    elif Path(model).suffix == ".json":
        name, architecture, licence = Path(model).stem, _read_architecture(Path(model)), "unknown"
        if weights is None and not random_weights:
            raise UserError(f"{model} is an architecture without weights; add --weights FILE or --random-weights")
    elif Path(model).suffix in checkpoint.FORMATS:
        own = checkpoint.read(Path(model))
        if own.architecture is None:
            raise UserError(
                f"{model} does not say its architecture; use --model NAME or ARCHITECTURE.json --weights {model}"
            )
        name, architecture = Path(model).stem, own.architecture
        licence = (own.metadata or {}).get("licence", "unknown")
    else:
        near = difflib.get_close_matches(model, ZOO, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ZOO)}."
        raise UserError(f"unknown model {model!r}: {hint} A path to a {'/'.join(checkpoint.FORMATS)} file works too")

    if random_weights:
        network = build(architecture, name)
        randomise(network, seed)
    else:
        if weights is not None:
            own = checkpoint.read(Path(weights))
        elif own is None:
            assert row is not None
            own = checkpoint.read(fetch(row.source) if "://" in row.source else WEIGHTS / row.source)
        with torch.device("meta"):  # shapes without memory: the checkpoint brings the values
            network = build(architecture, name)
        _fill(network, own, name, row.shapes_sha256 if row else None)
    network.spec = ModelSpec(
        name=name,
        shape=network.shape,
        classes=network.label_dim,
        sigma_min=max(SAMPLING_RANGE[0], network.preconditioning.sigma_limits[0]),
        sigma_max=min(SAMPLING_RANGE[1], network.preconditioning.sigma_limits[1]),
        sigma_data=network.sigma_data,
        licence="none: random weights" if random_weights else licence,
        weights_sha256=checkpoint.weights_sha256(network.state_dict()),
        random_weights=random_weights,
    )
    return network.eval().requires_grad_(False)


def _read_architecture(path: Path) -> dict[str, Any]:
    try:
        architecture = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(architecture, dict):
        raise UserError(f"{path}: expected an object of architecture arguments")
    return architecture


def build(architecture: dict[str, Any], name: str) -> Denoiser:
    """The network of these arguments, its weights not yet set. Raises UserError for unusable arguments."""
    known_to_sampler = ("use_fp16", "sigma_min", "sigma_max")  # of the original class; ours derives or ignores them
    arguments = {key: value for key, value in architecture.items() if key not in known_to_sampler}
    try:
        return Denoiser(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: unusable architecture ({error})") from error


def randomise(network: Denoiser, seed: int) -> None:
    """Fills the weights, N(0, 1/fan_in), so that signals keep their size through every layer."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        with torch.no_grad():
            if weight.dim() > 1:
                weight.normal_(0, 1 / math.sqrt(weight[0].numel()), generator=generator)
            else:
                weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for name, buffer in network.named_buffers():
        if name.endswith("freqs"):
            buffer.normal_(0, FourierEmbedding.SCALE, generator=generator)


def _fill(network: Denoiser, source: Checkpoint, name: str, shapes_sha256: str | None) -> None:
    wanted, found = network.state_dict(), source.tensors
    problems = (
        [f"{key} is missing" for key in wanted if key not in found]
        + [f"{key} is surplus" for key in found if key not in wanted]
        + [
            f"{key} is {list(found[key].shape)} instead of {list(wanted[key].shape)}"
            for key in wanted
            if key in found and found[key].shape != wanted[key].shape
        ]
    )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"the weights do not fit the architecture of {name}: {'; '.join(problems[:3])}{more}")
    if shapes_sha256 and checkpoint.shapes_sha256(found) != shapes_sha256:
        raise UserError(f"the weights' shapes are not those published for {name}")
    tensors = {key: found[key].to(torch.float32) for key in wanted}
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"the weights hold NaN or infinity in {bad[0]}")
    published = (source.metadata or {}).get("weights_sha256")
    if published and published != checkpoint.weights_sha256(tensors):
        raise UserError(f"the weights of {name} are damaged: their SHA-256 is not the one recorded with them")
    network.load_state_dict(tensors, assign=True)
