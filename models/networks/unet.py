"""The U-Net trunk that DDPM++, NCSN++, ADM and EDM2 share: which blocks stand where, and how features flow."""

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
    """``enc`` and ``dec`` hold the layers by their published names; ``trunk`` runs them.

    ``stem``, ``block`` and ``join`` are what a family may have of its own. ``style`` is that of the usual blocks.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict
    channels_out: int
    style: BlockStyle

    def stem(self, channels_in: int, channels_out: int) -> Conv2d:
        """The first layer."""
        return Conv2d(channels_in, channels_out, 3)

    def block(
        self,
        channels_in: int,
        channels_out: int,
        resample: str = "keep",
        attention: bool = False,
        decodes: bool = False,
    ) -> nn.Module:
        """A layer (x, embedding) → x, or a Conv2d, of the encoder, or where it ``decodes``, of the decoder."""
        if resample != "keep" and not self.style.resample_blocks:
            return Conv2d(channels_in, channels_out, 3, "stride" if resample == "down" else resample)
        return UNetBlock(channels_in, channels_out, self.style, resample, attention)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """What a block of the decoder sees: features, and those of the encoder, one behind the other."""
        return torch.cat([x, skip], dim=1)

    def build_trunk(self, layout: TrunkLayout) -> None:
        levels = [(layout.img_resolution >> level, width) for level, width in enumerate(layout.level_channels)]
        channels, pyramid_channels = layout.stem_channels, layout.in_channels
        skips: list[int] = []
        self.enc = nn.ModuleDict()
        for level, (resolution, width) in enumerate(levels):
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = self.stem(layout.in_channels, channels)
            else:
                self.enc[f"{name}_down"] = self.block(channels, channels, "down")
                if layout.pyramid:
                    self.enc[f"{name}_aux_residual"] = Conv2d(
                        pyramid_channels, channels, 3, "down", self.style.filter, fused=True
                    )
                    pyramid_channels = channels
            skips.append(channels)
            for index in range(layout.num_blocks):
                attention = layout.attends_encoder(resolution)
                self.enc[f"{name}_block{index}"] = self.block(channels, width, attention=attention)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, (resolution, width) in reversed(list(enumerate(levels))):
            name = f"{resolution}x{resolution}"
            if level == len(levels) - 1:
                self.dec[f"{name}_in0"] = self.block(channels, channels, attention=True, decodes=True)
                self.dec[f"{name}_in1"] = self.block(channels, channels, decodes=True)
            else:
                self.dec[f"{name}_up"] = self.block(channels, channels, "up", decodes=True)
            for index in range(layout.num_blocks + 1):
                attention = layout.attends_decoder(resolution, index)
                joined = channels + skips.pop()
                self.dec[f"{name}_block{index}"] = self.block(joined, width, attention=attention, decodes=True)
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
                x = layer(x) if isinstance(layer, Conv2d) else layer(x, embedding)
            skips.append(x)
        for name, layer in self.dec.items():
            if "_aux_" not in name:  # those are the head, which the network itself runs
                x = self.join(x, skips.pop()) if "_block" in name else x
                x = layer(x) if isinstance(layer, Conv2d) else layer(x, embedding)
        return x
