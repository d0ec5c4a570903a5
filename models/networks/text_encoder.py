"""A small transformer that makes one vector from a caption, trained together with the network that takes it."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PAD = 0  # the token that fills a caption up to its length


class TextEncoder(nn.Module):
    """Token ids int64 [n, length] → one embedding float32 [n, width]: the last layer's answer at the first token.

    Pre-normalised layers (arXiv 2002.04745) without dropout. Every caption starts with the same token; ids that are
    ``PAD`` are not looked at.
    """

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(TextLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, ids: Tensor) -> tuple[Tensor]:
        x = self.tokens(ids) + self.positions
        seen = (ids != PAD)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, seen)
        return (self.norm(x[:, 0]),)


class TextLayer(nn.Module):
    """Attention and a perceptron, each added to x [n, length, width]; ``seen`` bool [n, 1, 1, length]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm0, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm0(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm1(x))
