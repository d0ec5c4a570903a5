"""What PyTorch's exporter would write otherwise than PyTorch computes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import edge_sampler
from edge_sampler.export.network_graph import export_denoiser
from tests.export.networks import answer

Told = Callable[[Tensor], Tensor]
PARTS: dict[str, Told] = {
    "a small sum": lambda c: c / (c.abs() + 1e-8),
    "a small difference": lambda c: c / (c.abs() - -1e-10),
    "nearly once": lambda c: (c * 1.000005 - c) * 1e5,
    "nearly undivided": lambda c: (c / 1.000005 - c) * 1e5,
    "a norm": lambda c: functional.rms_norm(c, (2,), eps=1e-12),
    "log of a sigmoid": functional.logsigmoid,
    "in a block": torch.no_grad()(functional.logsigmoid),
    "in a block of another device": torch.autocast("cuda", torch.float16)(functional.logsigmoid),
    "in two blocks": torch.no_grad()(torch.autocast("cpu", enabled=False)(functional.logsigmoid)),
    "an axis that is not of one": lambda c: c.squeeze(1) * 2,
    "an axis of one": lambda c: c[:, None].squeeze(1) * 2,
    "another axis of one": lambda c: c[:, :1].squeeze(-1)[:, None] * c,
    "a bound that is whole": lambda c: torch.clamp(c, -1, 0.5),
    "an index of 32 bits": lambda c: torch.arange(4.0)[c.clamp(0, 1).int()],
}


class Adds(nn.Module):
    def __init__(self, part: Told) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        return x + self.part(told)


@pytest.mark.parametrize("name", PARTS)
def test_what_rarely_matters_is_computed_too(name: str) -> None:
    told = torch.tensor([[0.0, 0.0], [1e-5, 2e-5], [-30.0, 5.0], [-15.0, 1.0]])
    condition = {"told": edge_sampler.Condition((2,))}
    model = edge_sampler.adapt(Adds(PARTS[name]), (2,), "FlowPrecond", conditions=condition)
    expected = model(torch.zeros(4, 2), 1.0, told=told)
    assert expected.isfinite().all()
    found = answer(model, torch.zeros(4, 2), told=told)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6)


class Attends(nn.Module):
    def __init__(self, causal: bool = False, dtype: torch.dtype = torch.bool) -> None:
        super().__init__()
        self.causal, self.dtype = causal, dtype

    @torch.no_grad()  # a block, which PyTorch captures by itself
    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        shown = torch.ones(3, 3, dtype=torch.bool).tril() if self.causal else mask[:, None, None]
        heads = x[:, None]
        if self.dtype.is_floating_point:
            shown = torch.where(shown, 0.0, -torch.inf)
        return 0.5 * x + functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=shown)[:, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_attention_that_sees_nothing_is_zero(dtype: torch.dtype) -> None:
    """As of a prompt of no words, for guidance."""
    told = torch.tensor([[True, True, False], [False, False, False], [True, True, True], [False, False, True]])
    model = edge_sampler.adapt(
        Attends(dtype=dtype), (3, 2), "FlowPrecond", conditions={"mask": edge_sampler.Condition((3,), "bool")}
    )
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(answer(model, x, mask=told), model(x, 1.0, mask=told).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("causal", "nodes"), [(False, 1), (True, 0)])
def test_only_a_mask_of_the_caller_can_hide_everything(causal: bool, nodes: int) -> None:
    conditions = {"mask": edge_sampler.Condition((3,), "bool")}
    graph = export_denoiser(edge_sampler.adapt(Attends(causal), (3, 2), "FlowPrecond", conditions=conditions)).graph
    reduced = [node for node in graph if node.op_type in ("ReduceMax", "ReduceSum")]
    assert len(reduced) == nodes, [node.op_type for node in graph]


class Looks(nn.Module):
    """Attention without heads."""

    def __init__(self, shape: tuple[int, ...], scale: float | None = None) -> None:
        super().__init__()
        self.shape, self.scale = shape, scale

    def forward(self, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        shown = mask[:, None].expand(self.shape) if len(self.shape) == 3 else torch.ones(3, 3).tril(1).bool()
        seen = shown if self.shape else None
        return x + functional.scaled_dot_product_attention(
            x, 2 * x, x + 1, seen, is_causal=seen is None, scale=self.scale
        )


@pytest.mark.parametrize("network", [Looks(()), Looks((-1, 3, -1)), Looks((3, 3), 0.3)])
def test_attention_without_heads(network: Looks) -> None:
    told = torch.tensor([[True, True, False], [False, True, True]])
    conditions = {"mask": edge_sampler.Condition((3,), "bool")}
    model = edge_sampler.adapt(network, (3, 2), "FlowPrecond", conditions=conditions)
    x = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(answer(model, x, mask=told), model(x, 1.0, mask=told).numpy(), rtol=1e-4, atol=1e-6)


def test_whole_numbers_that_float32_does_not_hold_are_nan() -> None:
    """Where a network computes with them in float64, which a graph does in float32."""
    condition, network = {"told": edge_sampler.Condition((2,), "int64")}, Adds(lambda c: (c.double() / 7).sin().float())
    model = edge_sampler.adapt(network, (2,), "FlowPrecond", conditions=condition)
    told = torch.tensor([[2**24, -(2**24)], [2**24 + 1, 5]])
    found, x = answer(model, torch.zeros(2, 2), told=told), torch.zeros(2, 2)
    np.testing.assert_array_equal(np.isnan(found), [[False, False], [True, False]])
    np.testing.assert_allclose(found[1, 1], model(x, 1.0, told=told)[1, 1], rtol=1e-5)


class Chained(nn.Module):
    """What one mending makes, another one reads."""

    def __init__(self, part: Callable[[nn.Embedding, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rows, self.part = nn.Embedding(6, 2), part

    def forward(self, x: Tensor, t: Tensor, k: Tensor) -> Tensor:
        return x + self.part(self.rows, x, k)


def attended(rows: nn.Embedding, x: Tensor, k: Tensor) -> Tensor:
    """By heads of its own, squeezed, with a mask of what is looked up."""
    mask, heads = rows((k[:, None] + torch.arange(3)).clamp(0, 5)).mean(2, keepdim=True).mT, x[:, None]
    return functional.scaled_dot_product_attention(heads, heads, heads, mask[:, None]).squeeze(1)


CHAINS: list[Callable[[nn.Embedding, Tensor, Tensor], Tensor]] = [
    lambda rows, x, k: rows(torch.where(k < 0, 5, k)[:, None]).squeeze(1)[:, None],
    lambda rows, x, k: functional.scaled_dot_product_attention(x, (h := rows((k[:, None] + torch.arange(2)) % 6)), h),
    attended,
]


@pytest.mark.parametrize("part", CHAINS)
def test_one_mending_takes_what_another_makes(part: Callable[[nn.Embedding, Tensor, Tensor], Tensor]) -> None:
    conditions, k = {"k": edge_sampler.Condition((), "int64")}, torch.tensor([0, 4, 5])
    model = edge_sampler.adapt(Chained(part), (3, 2), "FlowPrecond", conditions=conditions)
    x = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(answer(model, x, k=k), model(x, 1.0, k=k).numpy(), rtol=1e-4, atol=1e-6)
