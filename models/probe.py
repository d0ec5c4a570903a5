"""Asks a user's network and its stages for a few answers: what tells them from others, and whether they are sound."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edge_sampler.models.denoiser import Denoiser, Preconditioned, per_sample
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise

DRAWN = 8  # values of each condition
SAME = 1e-5  # of the largest value: for as many samples, each is computed by the same operations
ROUNDED = 1e-3  # of the largest value, in which answers for one and for two samples may differ
FEW_BITS = 0.05  # and where 16 bits or fewer hold values on the way


class Rounding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices values of few bits while it is entered. ``allowed``: how far its computations may be off, relatively."""

    supports_higher_order_operators = True  # such as torch.cond

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed = ROUNDED

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        few = (isinstance(one, Tensor) and one.is_floating_point() and one.itemsize < 4 for one in tree_leaves(made))
        self.allowed = FEW_BITS if any(few) else self.allowed
        return made


def probe(model: Preconditioned, asked: tuple[list[dict[str, np.ndarray]], dict[str, int]]) -> list[float]:
    """What tells a network's answers from another's of the same weights: figures of its answers at three noise levels.

    ``asked`` is what ``drawn`` returned. Raises UserError where network, encoder or decoder return another shape than
    they should, and where an answer depends on another sample's, or on how many there are.
    """
    spec, name, answers = model.spec, model.spec.name, list[float]()
    raws, sizes = asked
    shape = spec.inputs.sized(sizes=sizes)
    x, weight = (torch.from_numpy(unit_noise(seeds, shape)) for seeds in ([0, 1], [2, 3]))
    states = (x[:1], x, torch.stack([3 * weight[0], x[0]]))
    with torch.inference_mode(), Rounding() as rounding:
        with one_line_of(f"{name}'s encoder failed for {shapes_of(raws[1])}"):
            told = [model.encode(raw) for raw in raws]
        spec.inputs.check({key: value.numpy() for key, value in told[1].items()}, 2)
        for key in told[1]:
            check_apart(f"{name}'s encoder, which makes {key},", [one[key] for one in told], rounding)
        for sigma in levels(spec):
            returned = [answer(model, *given, sigma) for given in zip(states, told, strict=True)]
            check_apart(name, returned, rounding)
            answers += figures(returned[1][:, : x.shape[1]], weight)
        if model.decoder is not None:
            made = [decoded(model, state, sizes) for state in states]
            check_apart(f"{name}'s decoder", made, rounding)
            answers += figures(made[1], torch.from_numpy(unit_noise([2, 3], made[1].shape[1:])))
            if spec.inputs.axes:
                other = {key: other_size(axis) for key, axis in spec.inputs.axes.items()}
                decoded(model, torch.from_numpy(unit_noise([0], spec.inputs.sized(sizes=other))), other)
    return answers


def decoded(model: Denoiser, state: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """What the decoder makes, with these sizes of axes. Raises UserError where that is not what its output says."""
    assert model.decoder is not None
    with one_line_of(f"the decoder failed for x {list(state.shape)}"):
        made = model.decoder(state.clone())
    expected = [len(state), *model.spec.inputs.sized(model.spec.output.shape, sizes)]
    got = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
    if got != expected:
        raise UserError(f"the decoder returned {got} for x {list(state.shape)}; its output says {expected}")
    if made.dtype != torch.float32:
        raise UserError(f"the decoder returned {made.dtype}; it must be torch.float32")
    return made


def other_size(axis: Axis) -> int:
    """One that is not the usual, if there is any."""
    return axis.least if axis.least < axis.usual else min(axis.usual + axis.step, axis.largest)


def check_denoiser(model: Denoiser) -> None:
    """Raises UserError where an answer depends on another sample's, or on how many there are; and where it fails."""
    raws, sizes = drawn(model)
    x = torch.from_numpy(unit_noise([0, 1, 2], model.spec.inputs.sized(sizes=sizes)))
    states = (x[:1], x[:2], torch.stack([3 * x[2], x[0]]))  # one first: a graph measures what its first run takes
    with torch.inference_mode(), Rounding() as rounding:
        if any(getattr(one, "few_bits", False) for one in model.modules()):
            rounding.allowed = FEW_BITS
        for sigma in levels(model.spec):
            made = [answered(model, sigma * state, sigma, raw) for state, raw in zip(states, raws, strict=True)]
            if (got := list(made[1].shape)) != list(x[:2].shape):
                raise UserError(f"{model.spec.name} made {got} of x {list(x[:2].shape)}; it must be as x")
            check_apart(model.spec.name, made, rounding)


def answered(model: Denoiser, x: Tensor, sigma: float, raw: Mapping[str, np.ndarray]) -> Tensor:
    """Its answer for what a caller gives. Raises UserError where it fails."""
    with one_line_of(f"{model.spec.name} failed for {shapes_of(raw) or 'its data'}"):
        return model(x, sigma, **model.encode(raw))


def try_extremes(model: Denoiser) -> None:
    """Raises UserError where it fails for the examples with the least and the largest whole number of a condition."""
    if callable(model.examples):
        return
    called, rows = model.spec.called_with, set[int]()
    found = {key: np.asarray(value) for key, value in model.examples.items()}
    for key, value in found.items():
        if called.conditions[key].dtype == "int64" and value.size:
            rows |= {int(np.unravel_index(place, value.shape)[0]) for place in (value.argmin(), value.argmax())}
    for row in sorted(rows):
        one = {key: value[row : row + 1] for key, value in found.items()}
        raw, sizes = called.check(model.draw_raw([0]) | one, 1)
        x = torch.from_numpy(unit_noise([0], model.spec.inputs.sized(sizes=sizes)))
        with torch.inference_mode():
            answered(model, x, levels(model.spec)[1], raw)


def shapes_of(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {list(value.shape)}" for key, value in values.items())


@contextmanager
def one_line_of(failure: str) -> Iterator[None]:
    """Raises UserError, ``failure`` and what Python said, where a network does not take what it is given."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        said, *_ = str(error).split("\n")
        raise UserError(f"{failure}: {said}") from error


def levels(spec: ModelSpec) -> tuple[float, float, float]:
    return spec.sigma_max, math.sqrt(spec.sigma_min * min(spec.sigma_max, 80.0)), spec.sigma_min


def drawn(model: Denoiser) -> tuple[list[dict[str, np.ndarray]], dict[str, int]]:
    """Conditions as a caller gives them, of one sample, of it and a second, and of it behind another one; and the sizes
    of axes. For those without examples stand normal numbers, masks that hide nothing, and 0 of what counts.
    """
    called = model.spec.called_with
    values, sizes = called.check(values_of(model), DRAWN)
    behind = {
        key: np.stack([another(value, called.conditions[key].choices), value[0]]) for key, value in values.items()
    }
    one, two = ({key: value[:count] for key, value in values.items()} for count in (1, 2))
    return [one, two, behind], sizes


def another(values: np.ndarray, choices: int) -> np.ndarray:
    """One that the first two of them are not, if there can be: the next; what differs most in size; of numbers that are
    the same, what they are turned round, or the next.
    """
    if choices:
        return np.asarray((values[0] + 1) % choices)
    sizes = np.abs(values.reshape(len(values), -1).astype(float)).sum(1)
    found = values[2 + np.abs(sizes[2:] - sizes[1]).argmax()]
    if found.dtype == np.float32 and (found == values[0]).all():
        turned = np.flip(found)
        return found + np.float32(1) if (turned == found).all() else turned
    return found


def values_of(model: Denoiser) -> dict[str, np.ndarray]:
    """By name, of each condition that a caller gives: [``DRAWN``, …]."""
    try:
        return model.draw_raw(range(DRAWN))
    except UserError:
        raw = {}
        for place, (key, one) in enumerate(model.spec.called_with.conditions.items()):
            seeds = [2 * place + 4, 2 * place + 5, *range(100, 98 + DRAWN)]
            values = unit_noise(seeds, model.spec.inputs.sized(one.shape))
            raw[key] = values if one.dtype == "float32" else np.full(values.shape, one.dtype == "bool", one.dtype)
        return raw


def answer(model: Preconditioned, x: Tensor, told: Mapping[str, Tensor], sigma: float) -> Tensor:
    """The network's own, as x, which is [n, *shape] of unit noise. Raises UserError where it fails or is not as x."""
    name, c = model.spec.name, model.preconditioning.coefficients(torch.tensor([sigma], dtype=torch.float32))
    places, names = model.told(told, x.device)
    given = {key: value.clone() for key, value in told.items()}
    called = f"x {list(x.shape)} and a noise level {list(c.c_noise.shape)}, one for all samples"
    called += f", and the conditions {shapes_of(told)}" if told else ""
    with one_line_of(f"{name} failed for {called}"):
        returned = model.model(per_sample(c.c_in, x) * x * sigma, c.c_noise, *places, **names)
    for key, value in given.items():
        if not torch.equal(value, told[key]):
            raise UserError(f"{name} changes its condition {key} in place, for all evaluations: let it change a copy")
    twice = (len(x), 2 * x.shape[1], *x.shape[2:])
    if not isinstance(returned, Tensor) or tuple(returned.shape) not in (tuple(x.shape), twice):
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(f"{name} returned {got} for x {list(x.shape)}; it should return as many, as large")
    return returned


def check_apart(who: str, answers: Sequence[Tensor], rounding: Rounding) -> None:
    """Raises UserError where a sample got several answers: alone, as the first of two, and behind another one."""
    alone, one, again = (found[place].double() for found, place in zip(answers, (0, 0, 1), strict=True))
    if (one - again).abs().max() > SAME * one.abs().max():
        raise UserError(
            f"{who} answers otherwise for the same sample beside another one: an answer may depend neither on the "
            "other samples of a batch nor on chance"
        )
    if (one - alone).abs().max() > rounding.allowed * one.abs().max():
        raise UserError(f"{who} answers otherwise for one sample than for the same in a batch: let it answer alike")


def figures(values: Tensor, weight: Tensor) -> list[float]:
    """How large they are, and something that no two arrays share by accident."""
    return [values.double().std().item(), (values * weight).double().mean().item()]
