"""Whether a network is still what was loaded, or what ``adapt`` saw: its fingerprint is of that."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.models.probe import probe
from edge_sampler.models.source_code import code_of
from edge_sampler.models.spec import digest
from edge_sampler.runtime.errors import UserError

SAME_ANSWERS = 1e-3  # relative: computed again, a network's answers differ by much less


def parameters_of(model: Preconditioned) -> str:
    """A hash of its parameters, numbers and code. Buffers are left out: many networks count in them, or keep tables."""
    networks = [one for one in (model.model, model.encoder, model.decoder) if one is not None]
    weights = weights_sha256(dict(model.named_parameters()))
    return digest([weights, [numbers_of(one) for one in networks], code_of(*networks)])


def is_adapted(model: Denoiser) -> bool:
    """Whether ``adapt`` made it, or what it is made of."""
    return any(isinstance(part, Preconditioned) and part.seen is not None for part in model.modules())


def check_unchanged(model: Denoiser) -> None:
    """Raises UserError where a network is no longer what was loaded, or what ``adapt`` saw."""
    for part in model.modules():
        if not isinstance(part, Preconditioned):
            continue
        if part.seen is None:
            own = {
                key: value for key, value in part.state_dict().items() if not key.startswith(("encoder.", "decoder."))
            }
            if weights_sha256(own) != part.spec.weights_sha256:
                raise UserError(
                    f"{model.spec.name} has other weights than were loaded: give a file of them, as --weights or as "
                    "weights= of load_model"
                )
            continue
        same = part.seen.parameters == parameters_of(part)
        if same and part.device.type == "cpu":  # where the answers were made
            same = np.allclose(part.seen.answers, probe(part, part.seen.asked), SAME_ANSWERS)
        if not same:
            raise UserError(
                f"{model.spec.name} is not what edge_sampler.adapt saw, by its weights, numbers, code or answers: "
                "adapt it again"
            )


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


def fractions_of(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """By name, those of a number, of a list or a mapping, or of the attributes of a record, such as a configuration."""
    if isinstance(value, float | np.floating):
        yield name, float(value)
    held = value if isinstance(value, Mapping) else {}
    if isinstance(value, list | tuple):
        held = dict(enumerate(value))
    elif isinstance(value, SimpleNamespace) or is_dataclass(value):
        held = vars(value)
    for key, one in held.items():
        yield from fractions_of(f"{name}.{key}", one)
