"""What is asked of a user's network and its stages: answers that depend on one sample alone, and on nothing else."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.runtime.errors import UserError

HINT = {"hint": edge_sampler.Condition((4,))}
POSE = edge_sampler.Output("pose", (8,))
ONE_ROW = np.arange(4, dtype=np.float32)[None]
LENGTHS = np.array([[3], [8], [3], [3]])


class Told(nn.Module):
    """Takes a hint [n, 4] beside x [n, 8]."""

    def forward(self, x: Tensor, sigma: Tensor, hint: Tensor) -> Tensor:
        return x * hint.mean(-1, keepdim=True).tanh()


class Swapped(nn.Module):
    """Its first argument, which gets x, is called as a condition is."""

    def forward(self, hint: Tensor, noise: Tensor) -> Tensor:
        return hint


class Mixing(nn.Module):
    """Takes from each sample so much of what its batch has, between two noise levels."""

    def __init__(
        self,
        part: float = 1.0,
        lowest: float = 0.0,
        highest: float = 1e9,
        statistic: Callable[[Tensor], Tensor] = lambda x: x.mean(0),
    ) -> None:
        super().__init__()
        self.part, self.lowest, self.highest, self.statistic = part, lowest, highest, statistic

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        mixed = x - self.part * self.statistic(x)
        if sigma is None:
            return mixed
        return torch.where((sigma >= self.lowest) & (sigma <= self.highest), mixed, x.half().float())


class Drawing(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Counting(nn.Module):
    """Multiplies by one and so much for each sample, from a noise level on."""

    def __init__(self, part: float = 1.0, lowest: float = 0.0) -> None:
        super().__init__()
        self.part, self.lowest = part, lowest

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        counted = x * (1 + self.part * len(x))
        return counted if sigma is None else torch.where(sigma >= self.lowest, counted, x)


class CountingHints(nn.Module):
    def forward(self, hint: Tensor) -> tuple[Tensor]:
        return (hint * len(hint),)


class MixingHints(nn.Module):
    def forward(self, hint: Tensor) -> tuple[Tensor]:
        return (hint - hint.mean(0),)


class MixingTold(nn.Module):
    """Takes something that the conditions of all samples have together for each sample's own."""

    def __init__(self, statistic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.statistic = statistic

    def forward(self, x: Tensor, sigma: Tensor, *classes: Tensor, **hints: Tensor) -> Tensor:
        told = self.statistic(torch.cat([*classes, *(hint.float() for hint in hints.values())], -1))
        return x * (told * torch.arange(1, 1 + told.shape[-1])).sum(-1, keepdim=True)


class Scaled(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        return x * scale[:, None]


@pytest.mark.parametrize(
    ("network", "stages", "who"),
    [
        (Mixing(), {}, "Mixing"),
        (Mixing(1e-3), {}, "Mixing"),
        (Mixing(lowest=50.0), {}, "Mixing"),
        (Mixing(highest=0.01), {}, "Mixing"),
        (Mixing(statistic=lambda x: x[:1]), {}, "Mixing"),
        (Mixing(statistic=lambda x: x.cumsum(0) - x), {}, "Mixing"),
        (Mixing(statistic=lambda x: x.abs().max()), {}, "Mixing"),
        (Drawing(), {}, "Drawing"),
        (Mixing(0.0), {"decoder": edge_sampler.Decoder(Mixing(), POSE)}, "Mixing's decoder"),
        (
            Told(),
            {"conditions": HINT, "encoder": edge_sampler.Encoder(MixingHints(), {"told": HINT["hint"]}, ("hint",))},
            "Told's encoder, which makes hint,",
        ),
        (MixingTold(lambda hint: hint.mean(0)), {"conditions": HINT}, "MixingTold"),
        (MixingTold(lambda hint: hint[:1]), {"conditions": HINT, "examples": {"hint": ONE_ROW}}, "MixingTold"),
        (MixingTold(lambda classes: classes[:1] * torch.arange(2)), {"classes": 2}, "MixingTold"),
        (
            MixingTold(lambda lengths: lengths / lengths.max()),
            {"conditions": {"length": edge_sampler.Condition((1,), "int64")}, "examples": {"length": LENGTHS}},
            "MixingTold",
        ),
    ],
)
def test_an_answer_depends_on_its_sample_alone(network: nn.Module, stages: dict[str, Any], who: str) -> None:
    """Else an image would be another with other images beside it, and nothing would say so."""
    with pytest.raises(UserError, match=f"{who} answers otherwise for the same sample beside another one"):
        models.adapt(network, (8,), **stages)


@pytest.mark.parametrize(
    ("network", "stages", "who"),
    [
        (Counting(), {}, "Counting"),
        (Counting(0.005), {}, "Counting"),
        (Counting(lowest=50.0), {}, "Counting"),
        (Mixing(0.0), {"decoder": edge_sampler.Decoder(Counting(), POSE)}, "Mixing's decoder"),
        (
            Told(),
            {"conditions": HINT, "encoder": edge_sampler.Encoder(CountingHints(), {"told": HINT["hint"]}, ("hint",))},
            "Told's encoder, which makes hint,",
        ),
    ],
)
def test_an_answer_is_the_same_in_a_batch(network: nn.Module, stages: dict[str, Any], who: str) -> None:
    with pytest.raises(UserError, match=f"{who} answers otherwise for one sample than for the same in a batch"):
        models.adapt(network, (8,), **stages)


class Few(Counting):
    """Computes in 16 bits, so that another kernel may round otherwise: here, by so much as ``part``."""

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        return super().forward(x.half(), sigma).float()


def test_few_bits_round() -> None:
    assert models.adapt(Few(0.01), (8,)).spec.shape == (8,)
    with pytest.raises(UserError, match="Few answers otherwise for one sample"):
        models.adapt(Few(0.2), (8,))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Looking(nn.Module):
    """Looks up two numbers, each in a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.few, self.many = nn.Embedding(4, 8), nn.Embedding(100, 8)

    def forward(self, x: Tensor, sigma: Tensor, places: Tensor) -> Tensor:
        return x + self.few(places[:, 0]) + self.many(places[:, 1])


def test_what_is_right_is_not_refused() -> None:
    """A decoder that works in place, and numbers that are in range where the examples have them."""
    models.adapt(Mixing(0.0), (8,), decoder=edge_sampler.Decoder(InPlace(), POSE))
    places = {"places": edge_sampler.Condition((2,), "int64")}
    models.adapt(Looking(), (8,), conditions=places, examples={"places": np.array([[0, 50], [1, 99], [3, 5]])})


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_a_condition_may_be_one_number(dtype: str) -> None:
    """Also before it has examples."""
    model = models.adapt(Scaled(), (8,), conditions={"scale": edge_sampler.Condition((), dtype, null=0)})
    assert model.spec.inputs.conditions["scale"].shape == ()


@pytest.mark.parametrize("places", [[[0, 50], [4, 9], [1, 1]], [[0, 50], [1, -1], [2, 2]]])
def test_examples_that_come_later_are_tried(places: list[list[int]]) -> None:
    """Those with the least and the largest numbers, so that a fit does not end at one of them."""
    model = models.adapt(Looking(), (8,), conditions={"places": edge_sampler.Condition((2,), "int64")})
    edge_sampler.with_examples(model, {"places": np.array([[0, 50], [3, 99], [0, 0]])})
    with pytest.raises(UserError, match=r"Looking failed for places \[[12], 2\]"):
        edge_sampler.with_examples(model, {"places": np.array(places)})


@pytest.mark.parametrize(
    ("network", "stages", "message"),
    [
        (
            Mixing(0.0),
            {"conditions": HINT},
            r"Mixing failed for x .*, and the conditions hint \[1, 4\]: .*unexpected k",
        ),
        (Swapped(), {"conditions": HINT}, r"and the conditions hint \[1, 4\]: .*multiple values for argument 'hint'"),
        (
            Told(),
            {"conditions": HINT, "encoder": edge_sampler.Encoder(Told(), {"told": HINT["hint"]}, ("hint",))},
            r"Told's encoder failed for told \[2, 4\]: .*missing 2 required",
        ),
        (
            Mixing(0.0),
            {"decoder": edge_sampler.Decoder(Told(), POSE)},
            r"the decoder failed for x \[1, 8\]: .*missing 2 r",
        ),
        (
            Mixing(0.0),
            {"decoder": edge_sampler.Decoder(nn.Linear(5, 8), POSE)},
            r"the decoder failed for x \[1, 8\]: .*mat",
        ),
    ],
)
def test_what_does_not_take_what_it_is_given_is_told(network: nn.Module, stages: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.adapt(network, (8,), **stages)


class WeighsTogether(nn.Module):
    """Takes a mean over all samples' weights, which are the same unless somebody gives others."""

    def forward(self, x: Tensor, sigma: Tensor, weight: Tensor) -> Tensor:
        return x * weight.float().mean()


def test_examples_that_come_later_are_compared() -> None:
    model = models.adapt(WeighsTogether(), (8,), conditions={"weight": edge_sampler.Condition((), "int64")})
    with pytest.raises(UserError, match="WeighsTogether answers otherwise"):
        edge_sampler.with_examples(model, {"weight": np.array([1, 2, 3, 7])})


class Halving(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor, scale: Tensor) -> Tensor:
        return x * scale.mul_(0.5)


def test_a_condition_that_is_changed_in_place_is_refused() -> None:
    """Each evaluation would see another value."""
    with pytest.raises(UserError, match="Halving changes its condition scale in place"):
        models.adapt(Halving(), (8,), conditions={"scale": edge_sampler.Condition((1,))})
