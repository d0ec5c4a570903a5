"""OpenAI's guided-diffusion (ADM, arXiv 2105.05233): its checkpoints' names and order, for our DhariwalUNet.

They are state dicts, https://github.com/openai/guided-diffusion (MIT). Of their networks, those are read whose blocks
halve and double the resolution and whose heads have 64 channels, which all published ones but 128×128's do.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from edge_sampler.models.networks.dhariwal_unet import DhariwalUNet
from edge_sampler.models.networks.layers import UNetBlock

URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
MARK = "input_blocks.0.0.weight"  # a tensor's name in every one
RESIDUAL = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}
AROUND = {
    "map_layer0": "time_embed.0",
    "map_layer1": "time_embed.2",
    "map_label": "label_emb",
    "out_norm": "out.0",
    "out_conv": "out.2",
}


def adm(resolution: int, mult: list[float], classes: int = 0, **changes: Any) -> dict[str, Any]:
    """The architecture's arguments of a published checkpoint. At 32, 16 and 8 pixels its blocks attend."""
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


def named_ours(tensors: Mapping[str, Tensor], network: DhariwalUNet, new_attention_order: bool) -> dict[str, Tensor]:
    """Their tensors by our names. Names that the network has no place for stay as they are."""
    found, left = dict[str, Tensor](), dict(tensors)

    def move(ours: str, theirs: str) -> None:
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in left:
                found[f"model.{ours}.{kind}"] = left.pop(f"{theirs}.{kind}")

    for ours, theirs in AROUND.items():
        move(ours, theirs)
    for name, theirs, attention, block in _blocks(network):
        for part, called in RESIDUAL.items() if block else {"": ""}.items():
            move(f"{name}.{part}".rstrip("."), f"{theirs}.{called}".rstrip("."))
        if block and block.heads:
            for part, called in ATTENTION.items():
                move(f"{name}.{part}", f"{attention}.{called}")
            for part in ("qkv", "proj"):
                if (weight := found.get(key := f"model.{name}.{part}.weight")) is not None:
                    found[key] = weight[..., None] if weight.dim() == 3 else weight
            for kind in ("weight", "bias"):
                if (value := found.get(key := f"model.{name}.qkv.{kind}")) is not None:
                    found[key] = reordered(value, block.heads, new_attention_order)
    if "model.map_label.weight" in found:  # an embedding's rows
        found["model.map_label.weight"] = found["model.map_label.weight"].T
    taps = {f"model.{name}": torch.full((1, 1, 2, 2), 0.25) for name, _ in network.named_buffers()}
    return found | taps | left


def _blocks(network: DhariwalUNet) -> Iterator[tuple[str, str, str, UNetBlock | None]]:
    """Our name of each layer of the trunk, theirs, that of its attention, and the block that it is."""
    for index, (name, layer) in enumerate(network.enc.items()):
        block = layer if isinstance(layer, UNetBlock) else None
        yield f"enc.{name}", f"input_blocks.{index}.0", f"input_blocks.{index}.1", block
    index, behind = -1, 0
    for name, layer in network.dec.items():
        assert isinstance(layer, UNetBlock)
        if name.endswith("_in0"):
            yield f"dec.{name}", "middle_block.0", "middle_block.1", layer
        elif name.endswith("_in1"):
            yield f"dec.{name}", "middle_block.2", "", layer
        elif name.endswith("_up"):  # the last of the output block before it
            yield f"dec.{name}", f"output_blocks.{index}.{behind}", "", layer
        else:
            index, behind = index + 1, 1 + bool(layer.heads)
            yield f"dec.{name}", f"output_blocks.{index}.0", f"output_blocks.{index}.1", layer


def reordered(value: Tensor, heads: int, new_attention_order: bool) -> Tensor:
    """[3c, …] by head, depth, (q, k, v), as ours are.

    Theirs are by (q, k, v), head, depth, or in their older networks by head, (q, k, v), depth.
    """
    rest = value.shape[1:]
    if new_attention_order:
        return value.reshape(3, heads, -1, *rest).movedim(0, 2).reshape(value.shape)
    return value.reshape(heads, 3, -1, *rest).movedim(1, 2).reshape(value.shape)
