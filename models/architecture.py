"""From an architecture's arguments, as checkpoints hold them, to the network."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edge_sampler.models import prompts
from edge_sampler.models.arguments import OWN, check_plain, check_product, check_types, preconditioning_of
from edge_sampler.models.denoiser import Preconditioned
from edge_sampler.models.networks import NETWORKS
from edge_sampler.models.networks.layers import FourierEmbedding
from edge_sampler.models.networks.patches import Patches
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.condition import class_labels
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs

MOST_WEIGHTS = 2**31  # EDM2-XXL has 1.5 billion
MOST_SAMPLE = 2**23  # 1024×1024 pixels have 3 million
MOST_ACTIVATIONS = 2**27  # as ADM has at 512×512 pixels
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
            _check_forward(shapes)
        return build_known(architecture)
    except KeyError as error:
        raise UserError(f"{name}: unusable architecture ({error.args[0]!r} is missing)") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise UserError(f"{name}: unusable architecture ({str(error).splitlines()[0]})") from error


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many values the largest tensor has that anything made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = 0

    def __torch_dispatch__(self, function: Any, _: Any, arguments: Any = (), named: Any = None) -> Any:
        made = function(*arguments, **(named or {}))
        tensors = [one for one in tree_leaves(made) if isinstance(one, torch.Tensor)]
        self.values = max([self.values, *(tensor.numel() for tensor in tensors)])
        return made


def _check_forward(shapes: Preconditioned) -> None:
    """A forward pass without values. Raises ValueError for a network or a sample beyond those that anybody has, and for
    an answer that has not the sample's shape.
    """
    weights, sample = sum(weight.numel() for weight in shapes.parameters()), math.prod(shapes.shape)
    needed = {name: one for name, one in shapes.inputs.conditions.items() if one.null is None}
    told = {name: torch.empty(1, *shapes.inputs.sized(one.shape)) for name, one in needed.items()}
    with _Largest() as largest:
        denoised = shapes(torch.empty(1, *shapes.shape), 1.0, **told)
    for what, values, most in (
        ("parameters", weights, MOST_WEIGHTS),
        ("values in a sample", sample, MOST_SAMPLE),
        ("values in one layer's answer", largest.values, MOST_ACTIVATIONS),
    ):
        if values > most:
            raise ValueError(f"it has {values:,} {what}, beyond any network's: at the most {most:,}")
    if denoised.shape[1:] != shapes.shape:
        raise ValueError(f"it makes {list(denoised.shape[1:])} of a sample {list(shapes.shape)}")


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
    own = inspect.signature(PRECONDITIONINGS[precond]).parameters
    preconditioning = preconditioning_of(precond, {name: arguments.pop(name) for name in own if name in arguments})
    check_types(arguments, OWN)
    check_types(arguments, NETWORKS[model_type])
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
