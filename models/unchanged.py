"""Whether a network is still what was loaded, or what ``adapt`` saw: its fingerprint is of that."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser, Preconditioned, Seen
from edge_sampler.models.probe import probe
from edge_sampler.models.spec import digest
from edge_sampler.runtime.errors import UserError

SAME_ANSWERS = 1e-4  # of the largest: computed again, a network's answers differ by less
DEPTH = 8  # of values within values


def parameters_of(model: Preconditioned) -> str:
    """A hash of its parameters and its parts' types. Buffers are left out: many networks count in them."""
    parts = [[name, type(part).__qualname__] for name, part in model.named_modules()]
    return digest([weights_sha256(dict(model.named_parameters())), kinds_of(model), parts])


def kinds_of(network: nn.Module) -> dict[str, str]:
    """The types of its parameters, but for float32: the same values of another type make other answers."""
    return {name: str(one.dtype) for name, one in network.named_parameters() if one.dtype != torch.float32}


def is_adapted(model: Denoiser) -> bool:
    """Whether ``adapt`` made it, or what it is made of."""
    return any(isinstance(part, Preconditioned) and part.seen is not None for part in model.modules())


def check_unchanged(model: Denoiser) -> None:
    """Raises UserError where a network is no longer what was loaded, or what ``adapt`` saw."""
    for part in model.modules():
        if not isinstance(part, Preconditioned):
            continue
        if part.seen is None:
            if not has_its_weights(part):
                raise UserError(
                    f"{model.spec.name} has other weights than were loaded: give a file of them, as --weights or as "
                    "weights= of load_model"
                )
        elif part.seen.parameters != parameters_of(part) or not answers_alike(part, part.seen):
            raise UserError(
                f"{model.spec.name} is not what edge_sampler.adapt saw, by its weights, parts or answers: adapt it "
                "again"
            )


def has_its_weights(model: Preconditioned) -> bool:
    """Whether its weights, with or without those of its stages, are what its spec tells."""
    every = model.state_dict()
    own = {key: value for key, value in every.items() if not key.startswith(("encoder.", "decoder."))}
    return model.spec.weights_sha256 in map(weights_sha256, (own, every))


def answers_alike(model: Preconditioned, seen: Seen) -> bool:
    if model.device.type != "cpu":  # where the answers were made
        return True
    again = np.array(probe(model, seen.asked))
    return bool(np.abs(again - seen.answers).max() <= SAME_ANSWERS * np.abs(seen.answers).max())


def numbers_of(network: nn.Module) -> dict[str, float]:
    """The fractional numbers that it and its parts hold beside weights: a change of one is another network.

    Whole numbers are left out, since many networks count in them, and what is no number may tell of a machine.
    """
    return {
        name: number
        for path, part in network.named_modules()
        for key, value in vars(part).items()
        for name, number in fractions_of(f"{path}.{key}", value)
    }


def fractions_of(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, float]]:
    """By name, those of a number, of a list or a mapping, or of the attributes of a record, such as a configuration."""
    if isinstance(value, float | np.floating):
        yield name, float(value)
    held = value if isinstance(value, Mapping) else {}
    if isinstance(value, list | tuple):
        held = dict(enumerate(value))
    elif isinstance(value, SimpleNamespace) or is_dataclass(value):
        held = getattr(value, "__dict__", {})
    for key, one in held.items() if depth < DEPTH else ():
        yield from fractions_of(f"{name}.{key}", one, depth + 1)
