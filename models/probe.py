"""Asks a user's network and its stages for a few answers: what tells them from others, and whether they are sound."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from edge_sampler.models.denoiser import Preconditioned, per_sample
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise

ROUNDED = 0.05  # of the largest value, in which answers for one and for two samples may differ, computed in few bits
SAME = 1e-5  # of the largest value: for as many samples, each is computed by the same operations


def probe(model: Preconditioned) -> list[float]:
    """What tells a network's answers from another's of the same weights: figures of its answers at three noise levels.

    To two digits, so that machines agree. Raises UserError where network, encoder or decoder return another shape than
    they should, and where an answer depends on another sample's. For conditions without examples stand normal numbers,
    masks that hide nothing, and 0 of what counts.
    """
    spec, name, answers = model.spec, model.spec.name, list[float]()
    checked, sizes = spec.called_with.check(values_of(model), 2)
    shape = spec.inputs.sized(sizes=sizes)
    x, weight = (torch.from_numpy(unit_noise(seeds, shape)) for seeds in ([0, 1], [2, 3]))
    moved = torch.stack([3 * weight[0], x[0]])  # the first sample, behind another and larger one
    with torch.inference_mode():
        told = model.encode(checked)
        spec.inputs.check({key: value.numpy() for key, value in told.items()}, 2)
        for rows in ([0, 0], [1, 0]):
            beside = model.encode({key: value[rows] for key, value in checked.items()})
            for key, value in told.items():
                check_apart(f"{name}'s encoder, which makes {key},", value, beside[key])
        middle = math.sqrt(spec.sigma_min * min(spec.sigma_max, 80.0))
        for sigma in (spec.sigma_max, middle, spec.sigma_min):
            returned = answer(model, x, sigma, told)
            check_apart(name, returned, answer(model, moved, sigma, beside))
            answers += figures(returned[:, : x.shape[1]], weight)
        check_alone(model, x, middle, told)
        if model.decoder is not None:
            decoded, expected = model.decoder(x), [2, *spec.inputs.sized(spec.output.shape, sizes)]
            if (got := list(decoded.shape)) != expected:
                raise UserError(f"the decoder returned {got} for x {list(x.shape)}; its output says {expected}")
            if decoded.dtype != torch.float32:
                raise UserError(f"the decoder returned {decoded.dtype}; it must be torch.float32")
            check_apart(f"{name}'s decoder", decoded, model.decoder(moved))
            answers += figures(decoded, torch.from_numpy(unit_noise([2, 3], expected[1:])))
    return [float(f"{figure:.1e}") for figure in answers]


def values_of(model: Preconditioned) -> dict[str, np.ndarray]:
    """By name, of each condition that a caller gives: [2, …]."""
    try:
        return model.draw_raw([0, 1])
    except UserError:
        raw = {}
        for place, (key, one) in enumerate(model.spec.called_with.conditions.items()):
            values = unit_noise([2 * place + 4, 2 * place + 5], model.spec.inputs.sized(one.shape))
            raw[key] = values if one.dtype == "float32" else np.full(values.shape, one.dtype == "bool", one.dtype)
        return raw


def answer(model: Preconditioned, x: Tensor, sigma: float, told: Mapping[str, Tensor]) -> Tensor:
    """The network's own, as x, which is [2, *shape] of unit noise. Raises UserError where it fails or is not as x."""
    name, c = model.spec.name, model.preconditioning.coefficients(torch.tensor([sigma]))
    places, names = model.told(told, x.device)
    try:
        returned = model.model(per_sample(c.c_in, x) * x * sigma, c.c_noise, *places, **names)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        called = f"x {list(x.shape)} and a noise level {list(c.c_noise.shape)}, one for all samples"
        raise UserError(f"{name} failed for {called}: {reason}") from error
    twice = (2, 2 * x.shape[1], *x.shape[2:])
    if not isinstance(returned, Tensor) or tuple(returned.shape) not in (tuple(x.shape), twice):
        got = list(returned.shape) if isinstance(returned, Tensor) else type(returned).__name__
        raise UserError(f"{name} returned {got} for x {list(x.shape)}; it should return as many, as large")
    return returned


def check_apart(who: str, answers: Tensor, moved: Tensor) -> None:
    """[2, …] each. Raises UserError where the first sample got another answer as the second, beside another."""
    one, again = answers[0].double(), moved[1].double()
    if (one - again).abs().max() > SAME * one.abs().max():
        raise UserError(
            f"{who} answers otherwise for the same sample beside another one: an answer may depend neither on the "
            "other samples of a batch nor on chance"
        )


def check_alone(model: Preconditioned, x: Tensor, sigma: float, told: Mapping[str, Tensor]) -> None:
    """Raises UserError where the network fails for one sample, or the first of two gets another answer by itself."""
    name, whole = model.spec.name, model(x, sigma, **told)
    try:
        alone = model(x[:1], sigma, **{key: value[:1] for key, value in told.items()})
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} failed for one sample: {reason}") from error
    if (alone - whole[:1]).abs().max() > ROUNDED * whole.abs().max():
        raise UserError(f"{name} answers otherwise for one sample than for the same in a batch: let it answer alike")


def figures(values: Tensor, weight: Tensor) -> list[float]:
    """How large they are, and something that no two arrays share by accident."""
    return [values.double().std().item(), (values * weight).double().mean().item()]
