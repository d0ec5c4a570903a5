"""Building blocks of the score networks of Song et al. (arXiv 2011.13456) and Dhariwal & Nichol (2105.05233).

Parameter names and shapes are those of the published EDM checkpoints, so their tensors load by name.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad, silu, softmax


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """GroupNorm over groups of at least four channels, 32 groups at the most."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps)


class PositionalEmbedding(nn.Module):
    """Noise label [n] → [n, channels]: cosines, then sines, at geometrically spaced frequencies (1706.03762)."""

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        half = channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device="cpu") / (half - endpoint)
        self.frequencies = ((1 / 10000) ** exponents).tolist()

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label[:, None] * noise_label.new_tensor(self.frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Noise label [n] → [n, channels] at random fixed frequencies (2006.10739)."""

    SCALE = 16.0  # standard deviation of the frequencies

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2))

    def forward(self, noise_label: Tensor) -> Tensor:
        angles = noise_label[:, None] * (2 * math.pi * self.get_buffer("freqs"))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def low_pass(filter: Sequence[float]) -> Tensor:
    """The kernel [1, 1, k, k] of a separable filter, whose sum is 1."""
    taps = torch.tensor(filter, dtype=torch.float32)
    return taps.outer(taps)[None, None] / taps.sum() ** 2


class Conv2d(nn.Module):
    """Convolution [n, in, h, w] → [n, out, h', w'] that may first halve or double the resolution.

    ``kernel`` 0 resamples only. ``filter`` is the separable low-pass filter of the resampling; ``fused`` (halving
    only) convolves before it filters, as NCSN++'s residual input pyramid does. "stride" halves without a filter.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        resample: str = "keep",
        filter: tuple[float, ...] = (1, 1),
        fused: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        assert resample in ("keep", "down", "up", "stride")
        assert resample == "down" or not fused
        self.resample, self.kernel, self.fused = resample, kernel, fused
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.empty(channels_out)) if kernel and bias else None
        self.register_buffer("resample_filter", low_pass(filter) if resample in ("down", "up") else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample in ("keep", "stride"):
            return self._convolve(x)
        taps = self.get_buffer("resample_filter")
        filter_padding = (taps.shape[-1] - 1) // 2
        if self.fused:
            x = self._convolve(x, filter_padding)
            channels = x.shape[1]
            return conv2d(x, taps.expand(channels, 1, -1, -1), groups=channels, stride=2)
        channels = x.shape[1]
        if self.resample == "up":
            taps = (4 * taps).expand(channels, 1, -1, -1)
            x = conv_transpose2d(x, taps, groups=channels, stride=2, padding=filter_padding)
        else:
            x = conv2d(x, taps.expand(channels, 1, -1, -1), groups=channels, stride=2, padding=filter_padding)
        return self._convolve(x)

    def _convolve(self, x: Tensor, more_padding: int = 0) -> Tensor:
        if self.weight is None:
            return x
        stride = 2 if self.resample == "stride" else 1
        return conv2d(x, self.weight, self.bias, stride, padding=self.kernel // 2 + more_padding)


def attend(qkv: Tensor, heads: int, normalised: Callable[[Tensor], Tensor] = lambda by_head: by_head) -> Tensor:
    """Self-attention over positions: qkv [n, 3c, h, w] → [n, c, h, w].

    The channels of qkv are ordered by head, then depth, then (q, k, v), as in the published weights. ``normalised``
    is what attention sees of them, [n·heads, 3, depth, positions].
    """
    _, channels, height, width = qkv.shape
    depth = channels // (3 * heads)
    by_head = qkv.reshape(-1, depth, 3, height * width).transpose(1, 2)  # [n·heads, 3, depth, positions]
    q, k, v = torch.split(normalised(by_head), 1, dim=1)
    return mean_by_likeness(q * depth**-0.5, k, v).reshape(-1, heads * depth, height, width)


def mean_by_likeness(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(qᵀk) weighs v, all [n, 1, depth, positions]; q has the factor depth^-½."""
    return v @ softmax(q.transpose(2, 3) @ k, dim=3).transpose(2, 3)


def joined_qkv(qkv: Conv2d, proj: Conv2d, heads: int, factor: float) -> Conv2d:
    """``qkv``, x [n, c, h, w] → [n, 3c, h, w], with what comes behind it, as far as weights can have it.

    Its channels are ordered by head, then (q, k, v), then depth, so that nothing has to put them in this order; q has
    its factor; and of a single head v has the projection times ``factor``, since attention makes a weighted mean,
    before which a matrix and a bias do what they do behind it.
    """
    projected = matrix(proj)
    channels = len(projected)
    depth = channels // heads
    q, k, v = matrix(qkv).reshape(heads, depth, 3, -1).unbind(2)
    if heads == 1:
        v = factor * (projected[:, :-1] @ v + pad(projected[:, -1:], (channels, 0)))
    rows = torch.stack([q * depth**-0.5, k, v], dim=1).reshape(3 * channels, -1)
    joined = Conv2d(channels, 3 * channels, 1)
    joined.weight, joined.bias = nn.Parameter(rows[:, :-1, None, None]), nn.Parameter(rows[:, -1])
    return joined.requires_grad_(False)


@contextlib.contextmanager
def attention_joined(network: nn.Module) -> Iterator[None]:
    """Within it, attention computes with ``joined_qkv``. A graph does, whose weights are made once."""
    blocks = [one for one in network.modules() if isinstance(one, UNetBlock) and one.heads]
    for block in blocks:
        with torch.no_grad():
            block.joined = joined_qkv(block.qkv, block.proj, block.heads, block.style.skip_scale)
    try:
        yield
    finally:
        for block in blocks:
            block.joined = None


def times(x: Tensor, factor: float) -> Tensor:
    """factor · x, without a pass over it where that is x."""
    return x if factor == 1 else factor * x


def matrix(layer: Conv2d) -> Tensor:
    """The weights of a 1×1 convolution, and its bias as one more column, [out, in + 1]."""
    assert layer.weight is not None
    assert layer.bias is not None
    return torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1)


@dataclass(frozen=True)
class BlockStyle:
    """What the residual blocks of one network family have in common."""

    embedding_channels: int
    eps: float
    skip_scale: float
    adaptive_scale: bool  # the embedding scales and shifts (ADM), or only shifts (DDPM++, NCSN++)
    resample_projects: bool  # a resampling skip path has a 1×1 convolution even where channels agree
    head_channels: int | None  # None: as many heads as ``heads`` says
    heads: int = 1
    resample_blocks: bool = True  # residual blocks halve and double, or convolutions alone
    filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.0


class UNetBlock(nn.Module):
    """Residual block x [n, in, h, w], embedding [n or 1, e] → [n, out, h', w'], with optional self-attention."""

    def __init__(
        self, channels_in: int, channels_out: int, style: BlockStyle, resample: str = "keep", attention: bool = False
    ) -> None:
        super().__init__()
        self.style = style
        self.dropout = nn.Dropout(style.dropout)
        self.norm0 = group_norm(channels_in, style.eps)
        self.conv0 = Conv2d(channels_in, channels_out, 3, resample, style.filter)
        self.affine = nn.Linear(style.embedding_channels, channels_out * (2 if style.adaptive_scale else 1))
        self.norm1 = group_norm(channels_out, style.eps)
        self.conv1 = Conv2d(channels_out, channels_out, 3)
        projects = channels_in != channels_out or (resample != "keep" and style.resample_projects)
        self.skip: nn.Module = nn.Identity()
        if projects or resample != "keep":
            self.skip = Conv2d(channels_in, channels_out, 1 if projects else 0, resample, style.filter)
        self.heads = 0
        self.joined: Conv2d | None = None  # within ``attention_joined``
        if attention:
            self.heads = channels_out // style.head_channels if style.head_channels else style.heads
            self.norm2 = group_norm(channels_out, style.eps)
            self.qkv = Conv2d(channels_out, 3 * channels_out, 1)
            self.proj = Conv2d(channels_out, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        modulation = self.affine(embedding)[:, :, None, None]
        h = self.conv0(silu(self.norm0(x)))
        if self.style.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = silu(self.norm1(h + modulation))
        x = times(self.skip(x) + self.conv1(self.dropout(h)), self.style.skip_scale)
        if self.heads:
            x = torch.add(self.attention(self.norm2(x)), x, alpha=self.style.skip_scale)
        return x

    def attention(self, x: Tensor) -> Tensor:
        """Attention over positions and the projection behind it, times the skip's factor: [n, c, h, w] → the same."""
        if self.joined is None:
            return times(self.proj(attend(self.qkv(x), self.heads)), self.style.skip_scale)
        _, channels, height, width = x.shape
        by_head = self.joined(x).reshape(-1, 3, channels // self.heads, height * width)
        seen = mean_by_likeness(*torch.split(by_head, 1, dim=1)).reshape(-1, channels, height, width)
        return seen if self.heads == 1 else times(self.proj(seen), self.style.skip_scale)
