"""The U-Net trunk that DDPM++, NCSN++ and ADM share: which blocks stand where, and how features flow through them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_sampler.models.networks.layers import BlockStyle, Conv2d, UNetBlock


@dataclass(frozen=True)
class TrunkLayout:
    """The shape of one trunk; the field names are those of the published checkpoints where they have one."""

    img_resolution: int
    in_channels: int
    stem_channels: int  # after the first convolution
    level_channels: tuple[int, ...]  # at full resolution, half, a quarter, …
    num_blocks: int
    attends_encoder: Callable[[int], bool]  # resolution → does the encoder's block there attend?
    attends_decoder: Callable[[int, int], bool]  # resolution, block index → does the decoder's?
    pyramid: bool = False  # NCSN++'s residual input pyramid


class UNet(nn.Module):
    """``enc`` and ``dec`` hold the layers by their published names; ``trunk`` runs them."""

    enc: nn.ModuleDict
    dec: nn.ModuleDict
    channels_out: int

    def build_trunk(self, layout: TrunkLayout, style: BlockStyle) -> None:
        levels = [(layout.img_resolution >> level, width) for level, width in enumerate(layout.level_channels)]
        channels, pyramid_channels = layout.stem_channels, layout.in_channels
        skips: list[int] = []
        self.enc = nn.ModuleDict()
        for level, (resolution, width) in enumerate(levels):
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv2d(layout.in_channels, channels, 3)
            else:
                self.enc[f"{name}_down"] = UNetBlock(channels, channels, style, "down")
                if layout.pyramid:
                    self.enc[f"{name}_aux_residual"] = Conv2d(
                        pyramid_channels, channels, 3, "down", style.filter, fused=True
                    )
                    pyramid_channels = channels
            skips.append(channels)
            for index in range(layout.num_blocks):
                attention = layout.attends_encoder(resolution)
                self.enc[f"{name}_block{index}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, (resolution, width) in reversed(list(enumerate(levels))):
            name = f"{resolution}x{resolution}"
            if level == len(levels) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(channels, channels, style, "up")
            for index in range(layout.num_blocks + 1):
                attention = layout.attends_decoder(resolution, index)
                self.dec[f"{name}_block{index}"] = UNetBlock(channels + skips.pop(), width, style, attention=attention)
                channels = width
        self.channels_out = channels

    def trunk(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [n, in, r, r], embedding [n or 1, e] → features [n, channels_out, r, r]."""
        pyramid = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("_aux_residual"):
                x = pyramid = (skips.pop() + layer(pyramid)) * math.sqrt(0.5)
            else:
                x = layer(x, embedding) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = torch.cat([x, skips.pop()], dim=1) if "_block" in name else x
                x = layer(x, embedding)
        return x
