"""EDM2's U-Net, whose layers keep the magnitude of what passes (arXiv 2312.02696, configuration G).

Here its layers are plain ones: that their weights have unit magnitude, their gains, and all the constants that stand
beside a layer are folded into weights when they are loaded, by ``models.edm2``. ``factors`` says by what.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, silu

from edge_sampler.models.networks.layers import Conv2d, attend
from edge_sampler.models.networks.unet import TrunkLayout, UNet

EPS = 1e-4  # beside a magnitude that divides
SILU = 0.596  # the magnitude of silu of unit noise (eq. 81)


def pixel_norm(x: Tensor, dim: int) -> Tensor:
    """x over its RMS magnitude along ``dim`` (pixelwise normalisation, arXiv 1710.10196)."""
    magnitude = torch.linalg.vector_norm(x, dim=dim, keepdim=True) * x.shape[dim] ** -0.5
    return x / (magnitude + EPS)


def shares(balance: float) -> tuple[float, float]:
    """What two terms of unit magnitude are weighed by, so that their sum has it too (eq. 88)."""
    return (1 - balance) / math.hypot(1 - balance, balance), balance / math.hypot(1 - balance, balance)


@dataclass(frozen=True)
class Style:
    """What the blocks of a network have in common; the names are those of the checkpoints' arguments."""

    embedding_channels: int
    resample_filter: tuple[float, ...] = (1, 1)
    channels_per_head: int = 64
    dropout: float = 0.0  # a matter of training only
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float | None = 256


class Block(nn.Module):
    """Residual block x [n, in, h, w], embedding [n or 1, e] → [n, out, h', w'], with optional self-attention.

    One of the encoder normalises what comes, one that ``decodes`` does not.
    """

    def __init__(
        self, channels_in: int, channels_out: int, style: Style, resample: str, attention: bool, decodes: bool
    ) -> None:
        super().__init__()
        layer = partial(Conv2d, bias=False)
        self.style, self.decodes = style, decodes
        self.resample: nn.Module = nn.Identity()
        if resample != "keep":
            self.resample = layer(channels_in, channels_in, 0, resample, style.resample_filter)
        self.conv_res0 = layer(channels_in if decodes else channels_out, channels_out, 3)
        self.emb_linear = nn.Linear(style.embedding_channels, channels_out, bias=False)
        self.conv_res1 = layer(channels_out, channels_out, 3)
        self.conv_skip = layer(channels_in, channels_out, 1) if channels_in != channels_out else None
        self.heads = channels_out // style.channels_per_head if attention else 0
        if self.heads:
            self.attn_qkv = layer(channels_out, 3 * channels_out, 1)
            self.attn_proj = layer(channels_out, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resample(x)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if not self.decodes:
            x = skip = pixel_norm(skip, dim=1)
        weight = self.emb_linear.weight
        modulation = linear(embedding, weight, weight.new_ones(len(weight)))[:, :, None, None]
        h = self.conv_res1(silu(self.conv_res0(silu(x)) * modulation))
        x = (skip if self.folds_skip else skip * shares(self.style.res_balance)[0]) + h
        if self.heads:
            h = self.attn_proj(attend(self.attn_qkv(x), self.heads, partial(pixel_norm, dim=2)))
            x = x * shares(self.style.attn_balance)[0] + h
        return x if self.style.clip_act is None else x.clamp(-self.style.clip_act, self.style.clip_act)

    @property
    def folds_skip(self) -> bool:
        """Whether the share of the skip path is in a weight."""
        return self.decodes and self.conv_skip is not None

    def factors(self) -> dict[str, float]:
        """By layer, what stands beside it."""
        kept, added = shares(self.style.res_balance)
        found = {"conv_res0": 1 / SILU, "emb_linear": 1 / SILU, "conv_res1": added / SILU}
        if self.conv_skip is not None:
            found["conv_skip"] = kept if self.folds_skip else 1.0
        if self.heads:
            found |= {"attn_qkv": 1.0, "attn_proj": shares(self.style.attn_balance)[1]}
        return found


class Frequencies(nn.Module):
    """Noise label [n] → [n, channels]: cosines of random fixed frequencies and phases (eq. 75, without its √2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels))
        self.register_buffer("phases", torch.zeros(channels))

    def forward(self, noise_label: Tensor) -> Tensor:
        return (noise_label[:, None] * self.get_buffer("freqs") + self.get_buffer("phases")).cos()


class EDM2UNet(UNet):
    """x [n, in, r, r], noise label [n or 1], one-hot classes [n, label_dim] or None → [n, out, r, r].

    The argument names are the checkpoints'; ``block`` is those of ``Style``. Raises TypeError for any other.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block: float | tuple[float, ...] | None,
    ) -> None:
        super().__init__()
        widths = tuple(model_channels * multiplier for multiplier in channel_mult)
        noise_channels = model_channels * channel_mult_noise if channel_mult_noise else widths[0]
        embedding_channels = model_channels * channel_mult_emb if channel_mult_emb else max(widths)
        self.blocks = Style(embedding_channels, **block)  # type: ignore[arg-type]
        self.label_dim, self.label_shares, self.concat_shares = label_dim, shares(label_balance), shares(concat_balance)
        self.emb_fourier = Frequencies(noise_channels)
        self.emb_noise = nn.Linear(noise_channels, embedding_channels, bias=False)
        if label_dim:
            self.emb_label = nn.Linear(label_dim, embedding_channels, bias=False)
        self.build_trunk(
            TrunkLayout(
                img_resolution,
                in_channels + 1,
                stem_channels=widths[0],
                level_channels=widths,
                num_blocks=num_blocks,
                attends_encoder=lambda resolution: resolution in attn_resolutions,
                attends_decoder=lambda resolution, index: resolution in attn_resolutions,
            )
        )
        self.out_conv = Conv2d(self.channels_out, out_channels, 3, bias=False)

    def stem(self, channels_in: int, channels_out: int) -> Conv2d:
        return Conv2d(channels_in, channels_out, 3, bias=False)

    def block(
        self,
        channels_in: int,
        channels_out: int,
        resample: str = "keep",
        attention: bool = False,
        decodes: bool = False,
    ) -> nn.Module:
        return Block(channels_in, channels_out, self.blocks, resample, attention, decodes)

    def join(self, x: Tensor, skip: Tensor) -> Tensor:
        """Weighed so that features and skip contribute by ``concat_balance``, whatever their widths (eq. 103)."""
        both = x.shape[1] + skip.shape[1]
        parts = zip((x, skip), self.concat_shares, strict=True)
        weighed = [(part, math.sqrt(both / part.shape[1]) * share) for part, share in parts]
        return torch.cat([part if math.isclose(weight, 1) else part * weight for part, weight in weighed], dim=1)

    def forward(self, x: Tensor, noise_label: Tensor, classes: Tensor | None = None) -> Tensor:
        embedding = self.emb_noise(self.emb_fourier(noise_label))
        if classes is not None:
            embedding = embedding + self.emb_label(classes)
        x = pad(x, (0, 0, 0, 0, 0, 1), value=1.0)  # a channel of ones stands for a bias
        return self.out_conv(self.trunk(x, silu(embedding)))

    def factors(self) -> dict[str, float]:
        """By layer, what its weights of unit magnitude are multiplied by, beside a gain of theirs."""
        noise, label = self.label_shares if self.label_dim else (1.0, 0.0)
        found = {"emb_noise": math.sqrt(2) * noise, "out_conv": 1.0}
        if self.label_dim:
            found["emb_label"] = math.sqrt(self.label_dim) * label
        for side, layers in (("enc", self.enc), ("dec", self.dec)):
            for name, layer in layers.items():
                inner = layer.factors() if isinstance(layer, Block) else {"": 1.0}
                found |= {f"{side}.{name}.{part}".rstrip("."): factor for part, factor in inner.items()}
        return found


NETWORKS = {"EDM2UNet": EDM2UNet}
