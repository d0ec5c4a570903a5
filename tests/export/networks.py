"""Small random networks with conditions, as people deploy them, and plans to run them by."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.save import save_checked
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import Decoder, Encoder, adapt
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.inputs import Output
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.scratch import scratch

LENGTHS, MEMORY = (8, 16, 48), (2, 6, 12)


def euler(sigmas: Sequence[float]) -> Plan:
    """DDIM's table on these noise levels."""
    rows: list[tuple[float, ...]] = [(sigmas[0],)]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        ratio = following / sigma
        rows.append((*(ratio * weight for weight in rows[-1]), 1 - ratio))
    return Plan("euler", tuple(sigmas), tuple(rows))


def answer(model: Denoiser, x: Tensor, **told: Tensor) -> np.ndarray:
    """The graph's, at a noise level of 1."""
    with scratch() as folder:
        save_checked(export_denoiser(model), folder / "denoiser.onnx")
        with Session(folder / "denoiser.onnx") as session:
            given = {name: value.numpy() for name, value in {"x": x, "sigma": torch.tensor(1.0), **told}.items()}
            return session.run(given)["denoised"]


def embedded(t: Tensor, width: int) -> Tensor:
    """[n] → sines and cosines [n, width]."""
    steps = width // 2
    angles = t[:, None] * torch.exp(-torch.arange(steps, device=t.device) * (math.log(1e4) / (steps - 1)))[None]
    return torch.cat([angles.sin(), angles.cos()], -1)


class Policy(nn.Module):
    """Diffusion policies' U-Net over time, one block of it: FiLM of (time, observation) joined; actions [n, 16, 7]."""

    def __init__(self, observed: int = 10, width: int = 16) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(width, width), nn.Mish(), nn.Linear(width, width))
        self.first, self.norm = nn.Conv1d(7, width, 5, padding=2), nn.GroupNorm(4, width)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(width + observed, 2 * width))
        self.last = nn.Conv1d(width, 7, 5, padding=2)

    def forward(self, x: Tensor, t: Tensor, seen: Tensor) -> Tensor:
        time = self.time(embedded(t.expand(x.shape[0]), 16))
        scale, shift = self.film(torch.cat([time, seen.expand(x.shape[0], -1)], -1)).unsqueeze(-1).chunk(2, 1)
        return self.last(functional.mish(self.norm(self.first(x.movedim(1, 2)))) * (1 + scale) + shift).movedim(1, 2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, memory: int | None = None) -> None:
        super().__init__()
        self.heads, of = heads, memory or width
        self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(of, width), nn.Linear(of, width)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        layers = ((self.q, x), (self.k, y), (self.v, y))
        q, k, v = (layer(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer, z in layers)
        return self.o(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Adaptive norm by the time, attention to itself or to the memory, and a wide layer."""

    def __init__(self, width: int, heads: int, memory: int | None) -> None:
        super().__init__()
        self.cross, self.attention = memory is not None, Attention(width, heads, memory)
        self.ada, self.norm = nn.Linear(width, 2 * width), nn.LayerNorm(width, elementwise_affine=False)
        self.wide = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"))
        self.back = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, time: Tensor, memory: Tensor, mask: Tensor | None, seen: Tensor | None) -> Tensor:
        scale, shift = self.ada(functional.silu(time))[:, None].chunk(2, -1)
        h = self.norm(x) * (1 + scale) + shift
        x = x + (self.attention(h, memory, seen) if self.cross else self.attention(h, h, mask))
        return x + self.back(self.wide(x))


class Transformer(nn.Module):
    """Frames [n, T, 20] that attend to each other under a mask [n, T], and to a memory [n, S, 24]."""

    def __init__(self, width: int = 16, heads: int = 2, layers: int = 2, data: int = 20, memory: int = 24) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(data, width), nn.Linear(width, data)
        self.time, self.norm, self.width = nn.Linear(width, width), nn.LayerNorm(memory), width
        kinds = (memory if layer % 2 == 0 else None for layer in range(layers))
        self.layers = nn.ModuleList([Block(width, heads, kind) for kind in kinds])

    def forward(self, x: Tensor, t: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        time, h, memory = self.time(embedded(1000 * t, self.width)), self.first(x), self.norm(memory)
        for layer in self.layers:
            h = layer(h, time, memory, mask[:, None, None, :], None)
        return self.last(h)


class Head(Transformer):
    """A flow-matching action head, as vision-language-action models have it: few queries, many tokens under a mask."""

    def forward(self, x: Tensor, t: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        time, h, memory = self.time(embedded(1000 * t, self.width)), self.first(x), self.norm(memory)
        for layer in self.layers:
            h = layer(h, time, memory, None, mask[:, None, None, :])
        return self.last(h)


class Convolved(nn.Module):
    """Images [n, 1, 8, 8] through so many convolutions between the first and the last, with biases and without, and of
    groups."""

    def __init__(self, layers: int, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)
        kinds: tuple[dict[str, Any], ...] = ({}, {"bias": False, "groups": 2}, {"kernel_size": 1, "padding": 0})
        told = ({"kernel_size": 3, "padding": 1, **kinds[place % 3]} for place in range(layers))
        self.inner = nn.ModuleList([nn.Conv2d(width, width, **one) for one in told])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.inner:
            x = x + layer(functional.silu(x))
        return self.last(x)


class Classed(nn.Module):
    """Images [n, 1, 8, 8] of ten classes, each of which shifts channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.shifts = nn.Linear(10, 8)

    def forward(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        return self.last(functional.silu(self.first(x) + self.shifts(classes)[..., None, None]))


class Words(nn.Module):
    """Word numbers [n, S] → memory [n, S, 24]."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 24), nn.Linear(24, 24)

    def forward(self, words: Tensor) -> tuple[Tensor]:
        return (self.layer(self.table(words)).tanh(),)


class Vocoder(nn.Module):
    """Frames [n, T, 20] → [n, T, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh() * 2


def policy() -> Denoiser:
    torch.manual_seed(0)
    examples = {"seen": np.random.default_rng(0).standard_normal((8, 10), np.float32)}
    return adapt(Policy(), (16, 7), "EDMPrecond", conditions={"seen": Condition((10,), null=0.0)}, examples=examples)


def convolved(layers: int) -> Denoiser:
    torch.manual_seed(3)
    return adapt(Convolved(layers), (1, 8, 8), "EDMPrecond")


def of_classes() -> Denoiser:
    torch.manual_seed(4)
    return adapt(Classed(), (1, 8, 8), "EDMPrecond", classes=10)


def frames(stages: bool = False) -> Denoiser:
    torch.manual_seed(1)
    rng, length, size = np.random.default_rng(1), LENGTHS[1], MEMORY[1]
    mask = np.arange(length)[None] < rng.integers(length // 2, length + 1, (8, 1))
    memory = rng.standard_normal((8, size, 24), np.float32)
    words = rng.integers(0, 11, (8, size))
    return adapt(
        Transformer().eval(),
        ("length", 20),
        "FlowPrecond",
        num_train_timesteps=1,
        axes={"length": LENGTHS, "tokens": MEMORY},
        conditions={"memory": Condition(("tokens", 24), null=0.0), "mask": Condition(("length",), "bool")},
        examples={"words": words, "mask": mask} if stages else {"memory": memory, "mask": mask},
        encoder=Encoder(Words(), {"words": Condition(("tokens",), "int64")}, ("memory",)) if stages else None,
        decoder=Decoder(Vocoder(), Output("audio", ("length", 3))) if stages else None,
    )


def head(width: int = 16, memory: int = 24, tokens: int = 256, layers: int = 8, queries: int = 17) -> Denoiser:
    torch.manual_seed(2)
    rng = np.random.default_rng(2)
    mask = np.arange(tokens)[None] < rng.integers(tokens // 2, tokens + 1, (4, 1))
    return adapt(
        Head(width, 2, layers, 7, memory).eval(),
        (queries, 7),
        "FlowPrecond",
        num_train_timesteps=1,
        axes={"tokens": (2, tokens, 4 * tokens)},
        conditions={"memory": Condition(("tokens", memory)), "mask": Condition(("tokens",), "bool")},
        examples={"memory": rng.standard_normal((4, tokens, memory), np.float32), "mask": mask},
    )
