"""OpenAI's diffusion checkpoints: their tensors under our names and in our order, for our DhariwalUNet.

They are state dicts of https://github.com/openai/improved-diffusion (arXiv 2102.09672) and guided-diffusion (ADM,
2105.05233), both MIT. Networks that upsample an image are not read.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from edge_sampler.models.networks.dhariwal_unet import DhariwalUNet
from edge_sampler.models.networks.layers import UNetBlock

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


RESAMPLING = {"down": "op", "up": "conv"}  # where convolutions alone do it


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
        called_alone = {"": RESAMPLING.get(name.rpartition("_")[2], "")}
        for part, called in (RESIDUAL if block else called_alone).items():
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
        block = layer if isinstance(layer, UNetBlock) else None
        if name.endswith("_in0"):
            yield f"dec.{name}", "middle_block.0", "middle_block.1", block
        elif name.endswith("_in1"):
            yield f"dec.{name}", "middle_block.2", "", block
        elif name.endswith("_up"):  # the last of the output block before it
            yield f"dec.{name}", f"output_blocks.{index}.{behind}", "", block
        else:
            index, behind = index + 1, 1 + bool(block and block.heads)
            yield f"dec.{name}", f"output_blocks.{index}.0", f"output_blocks.{index}.1", block


def reordered(value: Tensor, heads: int, new_attention_order: bool) -> Tensor:
    """[3c, …] by head, depth, (q, k, v), as ours are.

    Theirs are by (q, k, v), head, depth, or in their older networks by head, (q, k, v), depth.
    """
    rest = value.shape[1:]
    if new_attention_order:
        return value.reshape(3, heads, -1, *rest).movedim(0, 2).reshape(value.shape)
    return value.reshape(heads, 3, -1, *rest).movedim(1, 2).reshape(value.shape)
