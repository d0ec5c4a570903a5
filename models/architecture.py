"""From an architecture's arguments, as checkpoints hold them, to the network."""

import inspect
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from edge_sampler.models import prompts
from edge_sampler.models.denoiser import Preconditioned
from edge_sampler.models.networks import NETWORKS
from edge_sampler.models.networks.layers import FourierEmbedding
from edge_sampler.models.networks.patches import Patches
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.condition import class_labels
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs

LARGEST_NUMBER, MOST_BLOCKS, MOST_VALUES = 2**24, 256, 4096  # beyond what any network has
COUNTS = re.compile("layers|blocks|depth")  # in the names of arguments that say how many of something are built
DEFAULT_NETWORKS = {"EDMPrecond": "DhariwalUNet", "iDDPMPrecond": "DhariwalUNet"}  # of EDM's classes; else SongUNet
IGNORED = (
    "use_fp16",
    "sigma_data",
    "new_attention_order",
    "logvar_channels",
    "latents",
)  # where nothing here takes them


def build(architecture: Mapping[str, Any], name: str) -> Preconditioned:
    """The network of these arguments, its weights not yet set. Raises UserError for unusable arguments.

    Those that do not fit together are found by a forward pass of shapes alone, on PyTorch's meta device.
    ``precond`` and ``model_type`` name rows of ``PRECONDITIONINGS`` and ``NETWORKS``; ``patch`` is the size of the
    patches that the network sees, ``text`` how it is told a caption (``models.prompts``). What is neither those, the
    images' shape nor an argument of the preconditioning goes to the network.
    """
    try:
        check_plain(architecture)
        check_product(architecture)
        with torch.device("meta"):
            shapes = build_known(architecture)
            if empty := [weight for weight, values in shapes.named_parameters() if not values.numel()]:
                raise ValueError(f"{empty[0]} has no values")
            if not predicts_all(architecture):
                raise ValueError(
                    "it predicts fewer channels than it is given: networks conditioned on images need a "
                    "wrapper that takes the image as a condition, see docs/your-model.md"
                )
            needed = {name: one for name, one in shapes.inputs.conditions.items() if one.null is None}
            told = {name: torch.empty(1, *shapes.inputs.sized(one.shape)) for name, one in needed.items()}
            shapes(torch.empty(1, *shapes.shape), 1.0, **told)
        return build_known(architecture)
    except KeyError as error:
        raise UserError(f"{name}: unusable architecture ({error.args[0]!r} is missing)") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{name}: unusable architecture ({str(error).splitlines()[0]})") from error


def check_plain(value: Any, name: str = "architecture", left: int = MOST_VALUES) -> int:
    """Raises ValueError for arguments that are no plain values or beyond any network's, before anything is built.

    Returns how many of ``left`` values more there may be.
    """
    if left <= 0:
        raise ValueError(f"{name} makes more than {MOST_VALUES} values")
    if isinstance(value, Mapping | list | tuple):
        for key, part in value.items() if isinstance(value, Mapping) else ((name, part) for part in value):
            if not isinstance(key, str):
                raise ValueError(f"{name} has a name that is no text")
            left = check_plain(part, key, left - 1)
    elif isinstance(value, int | float):
        most = MOST_BLOCKS if COUNTS.search(name) else LARGEST_NUMBER
        if abs(value) > most and not math.isinf(value):
            raise ValueError(f"{name} is larger than {most}, beyond any network's")
    elif not isinstance(value, str | None):
        raise ValueError(f"{name} is a {type(value).__name__}; allowed are texts, numbers and lists of them")
    return left


def check_product(architecture: Mapping[str, Any]) -> None:
    """Raises ValueError where a list of levels times blocks in each makes more than any network has."""
    blocks = [
        int(value) for name, value in architecture.items() if COUNTS.search(name) and isinstance(value, int | float)
    ]
    lengths = [len(value) for value in architecture.values() if isinstance(value, list | tuple)]
    if max(blocks, default=1) * max(lengths, default=1) > MOST_VALUES:
        raise ValueError(f"{max(lengths)} levels of {max(blocks)} blocks make more than {MOST_VALUES}")


def build_known(architecture: Mapping[str, Any]) -> Preconditioned:
    """``build`` of arguments that are known to fit, such as the zoo's, in a tenth of its time."""
    arguments = dict(architecture)
    precond = arguments.pop("precond")
    model_type = arguments.pop("model_type", None) or DEFAULT_NETWORKS.get(precond, "SongUNet")
    for argument, value, known in (
        ("precond", precond, PRECONDITIONINGS),
        ("model_type", model_type, NETWORKS),
    ):
        if value not in known:
            raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(known)}")
    make = PRECONDITIONINGS[precond]
    own = {key: arguments.pop(key) for key in inspect.signature(make).parameters if key in arguments}
    preconditioning = make(**own)
    for ignored in IGNORED:
        arguments.pop(ignored, None)
    lowest, highest = preconditioning.sigma_limits
    limits = arguments.pop("sigma_min", lowest), arguments.pop("sigma_max", highest)  # those of EDM's snapshots
    preconditioning = replace(preconditioning, sigma_limits=limits)
    lowest, highest = preconditioning.sigma_range
    if not 0 < lowest < highest:
        raise ValueError(f"sigma_min is {limits[0]} and sigma_max {limits[1]}; they must be in order")
    resolution, channels = arguments.pop("img_resolution"), arguments.pop("img_channels")
    classes, null = arguments.pop("label_dim", 0), -1 if arguments.get("label_dropout") else None
    predicted = arguments.pop("out_channels", 2 * channels if precond == "iDDPMPrecond" else channels)
    patch, text = arguments.pop("patch", 1), arguments.pop("text", None)
    size, inside, outside = resolution // patch, channels * patch**2, predicted * patch**2
    network = NETWORKS[model_type](size, inside, outside, text["width"] if text else classes, **arguments)
    conditions = prompts.embeds(text) if text else class_labels(classes, null)
    inputs = Inputs((channels, resolution, resolution), conditions)
    model = Preconditioned(Patches(network, patch) if patch > 1 else network, preconditioning, inputs)
    if text:
        model.encoder = prompts.encoder(text)
    return model


def predicts_all(architecture: Mapping[str, Any]) -> bool:
    """Whether a network answers for every channel of its input; the others are conditioned on images."""
    return architecture.get("out_channels", architecture["img_channels"]) >= architecture["img_channels"]


def randomise(network: nn.Module, seed: int) -> None:
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
