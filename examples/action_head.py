"""A flow-matching action head, as vision-language-action models have it, with random weights: what is computed once.

    python -m export --model examples/action_head.py:make --nfe 8 --solver ddim --check 0 --out head
    python -m export --model examples/action_head.py:with_encoder --nfe 8 --solver ddim --check 0 --out head-encoder
    python -m runtime bench head                  # the host loop beside the unrolled graph

17 action queries of 384 attend to 256 tokens of 512 in four of eight layers. The tokens stay the same at all
evaluations, and so do their keys and values. ``with_encoder`` has two layers over the tokens inside the network too:
written so, a loop on the host computes them at every evaluation.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

import edge_sampler
from edge_sampler import Condition

QUERIES, DIMS, WIDTH = 17, 7, 384
TOKENS, TOLD = 256, 512
LAYERS, HEADS, ENCODER_LAYERS = 8, 8, 2


class Attention(nn.Module):
    """x [n, q, width] attends to y [n, s, of]."""

    def __init__(self, width: int, of: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(w, width) for w in (width, of, of, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        layers = ((self.q, x), (self.k, y), (self.v, y))
        q, k, v = (layer(z).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer, z in layers)
        return self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention to the tokens, or to the queries themselves, and a layer for each; scaled and shifted by the time."""

    def __init__(self, width: int, of: int | None) -> None:
        super().__init__()
        self.across, self.attention = of is not None, Attention(width, of or width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.each = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.time = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, tokens: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(silu(time))[:, None].chunk(2, -1)
        normed = self.norms[0](x) * (1 + scale) + shift
        x = x + self.attention(normed, tokens if self.across else normed)
        return x + self.each(self.norms[1](x))


class Head(nn.Module):
    """x [n, 17, 7], t [n or 1], tokens [n, 256, 512] → noise - actions, as x."""

    def __init__(self, encoder_layers: int = 0) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(Layer(TOLD, None) for _ in range(encoder_layers))
        self.first, self.last = nn.Linear(DIMS, WIDTH), nn.Linear(WIDTH, DIMS)
        self.time = nn.Linear(8, WIDTH)
        self.layers = nn.ModuleList(Layer(WIDTH, None if k % 2 else TOLD) for k in range(LAYERS))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        for layer in self.encoder:
            tokens = layer(tokens, tokens, torch.zeros(1, TOLD, device=x.device))
        angles = t[:, None] * 2.0 ** torch.arange(4, device=t.device)
        time, hidden = self.time(torch.cat([angles.sin(), angles.cos()], -1)), self.first(x)
        for layer in self.layers:
            hidden = layer(hidden, tokens, time)
        return self.last(hidden)


def tokens(seeds: list[int]) -> dict[str, np.ndarray]:
    rngs = [np.random.default_rng([3, seed]) for seed in seeds]
    return {"tokens": np.stack([rng.standard_normal((TOKENS, TOLD), np.float32) for rng in rngs])}


def make(encoder_layers: int = 0) -> edge_sampler.Denoiser:
    torch.manual_seed(0)
    return edge_sampler.adapt(
        Head(encoder_layers),
        (QUERIES, DIMS),
        "FlowPrecond",
        num_train_timesteps=1,
        conditions={"tokens": Condition((TOKENS, TOLD), description="what the vision-language model says")},
        examples=tokens,
        output="actions",
        licence="Apache-2.0",
    )


def with_encoder() -> edge_sampler.Denoiser:
    return make(ENCODER_LAYERS)
