"""EDM2's checkpoints (arXiv 2312.02696): their arguments, tensors and latents, for our EDM2UNet.

They are pickles of EDM's kind, https://github.com/NVlabs/edm2, or the state dict in one. Their estimate of the loss,
``logvar``, is a matter of training, and left out.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.models.networks.edm2_unet import EPS, EDM2UNet
from edge_sampler.models.networks.layers import low_pass
from edge_sampler.models.published import LATENTS
from edge_sampler.runtime.errors import UserError

MARK = "unet.out_gain"  # a tensor's name in every one
UNUSED = "logvar_"
TRAINING = ("dropout", "use_fp16")  # arguments that decide no answer here
GAINS = {"emb_linear": "emb_gain", "out_conv": "out_gain"}  # of the layers that have one
CLASS = "Precond"  # of the network in a pickle
PIXELS, VAE = "StandardRGBEncoder", "StabilityVAEEncoder"  # what is beside it there


def described(arguments: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """An architecture of what a pickle says of its network and its encoder of images.

    Raises UserError for an encoder that is neither of theirs.
    """
    network = {"precond": "EDMPrecond", "model_type": "EDM2UNet", **arguments}
    kind = encoder.get("class_name", VAE if arguments.get("img_channels") == len(LATENTS["mean"]) else PIXELS)
    if kind == PIXELS:
        return network
    if kind != VAE:
        raise UserError(f"its encoder is {kind}; supported: {PIXELS} and {VAE}")
    scale, bias = encoder.get("scale"), encoder.get("bias")  # of what the network sees: scale · latents + bias
    if scale is None or bias is None:
        return {**network, "latents": LATENTS}
    return {**network, "latents": {"mean": (-bias / scale).tolist(), "std": (1 / scale).tolist()}}


def check_same(architecture: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """Raises UserError where a pickle is of another network than the one that it is loaded into.

    Weights have the same shapes whatever they are balanced by.
    """
    for key in sorted((architecture.keys() & told.keys()) - set(TRAINING)):
        if (wanted := architecture[key]) != told[key] and not (key == "latents" and alike(wanted, told[key])):
            raise UserError(f"the snapshot's {key} is {told[key]}, and not {wanted}: load it by its own path")


def alike(latents: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    """Whether the statistics are the same to what float32 holds."""
    try:
        return all(np.allclose(latents[key], others[key], rtol=1e-5) for key in LATENTS)
    except (TypeError, KeyError, ValueError):  # those of a file are anything
        return False


def folded(tensors: Mapping[str, Tensor], network: EDM2UNet) -> dict[str, Tensor]:
    """Their tensors by our names, what ``network.factors`` says folded into the weights.

    A weight w of n inputs becomes factor · gain · w / (RMS of w + ε) / √n (eq. 47 and 66). Names that the network has
    no place for, and what is no weight, stay as they are.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    found = dict[str, Tensor]()
    for name, factor in network.factors().items():
        weight, own = left.get(key := f"unet.{name}.weight"), GAINS.get(name.rpartition(".")[2])
        gain_key = f"unet.{name}".rpartition(".")[0] + f".{own}"
        gain = left.get(gain_key) if own else torch.ones(())
        if weight is None or weight.dim() < 2 or not weight.is_floating_point() or gain is None or gain.dim():
            continue
        del left[key]
        left.pop(gain_key, None)
        rms = weight.double().flatten(1).square().mean(1).sqrt()
        scale = factor * gain.double() / ((rms + EPS) * math.sqrt(weight[0].numel()))
        # One rounding for a filter: so the weights are the same, bit for bit, on every machine.
        found[f"model.{name}.weight"] = weight.float() * scale.float().reshape(-1, *(1 for _ in weight.shape[1:]))
    for name, _ in network.named_buffers():
        if name.endswith("resample_filter"):
            found[f"model.{name}"] = low_pass(network.blocks.resample_filter)
        elif f"unet.{name}" in left:
            found[f"model.{name}"] = left.pop(f"unet.{name}")
    return found | left
