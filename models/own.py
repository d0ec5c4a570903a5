"""A network of one's own behind the denoiser contract. docs/your-model.md shows how."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.errors import UserError

NAME = re.compile(r"(.+\.py):(\w+)")
ROOMS = Path(__file__).resolve().parents[1]  # the folder that holds this one


def adapt(
    network: nn.Module,
    shape: tuple[int, int, int],
    precond: str = "Denoised",
    classes: int = 0,
    licence: str = "unknown",
    **arguments: Any,
) -> Denoiser:
    """A denoiser of a trained network.

    Args:
        network: called with x, float32 [n, channels, height, width], scaled as ``precond`` says, and what that tells
            it of the noise, float32 [n or 1]; with ``classes``, also with one-hot ones, float32 [n or 1, classes],
            whose zeros are "no class". It returns what ``precond`` says, shaped as x.
        shape: of one image: channels, height, width.
        precond: a name of ``PRECONDITIONINGS``: "Denoised" for a network of (x, σ) that predicts clean
            images, "DDPMPrecond" for one of (x, t) in discrete steps, "FlowPrecond" for rectified flow, and EDM's.
        arguments: of that preconditioning.

    Raises UserError for an unknown preconditioning or argument, and where the network does not return images.
    """
    if precond not in PRECONDITIONINGS:
        raise UserError(f"precond is {precond!r}; allowed: {', '.join(PRECONDITIONINGS)}")
    try:
        preconditioning = PRECONDITIONINGS[precond](**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{precond}: {error}") from error
    model = Preconditioned(network, preconditioning, shape, classes)
    name = type(network).__name__
    model.describe(name, licence, weights_sha256(model.state_dict()))
    x = torch.zeros(2, *shape)
    with torch.inference_mode():
        returned = network(x, torch.ones(1), *model.one_hot(None, x.device))
    if not isinstance(returned, torch.Tensor) or returned.shape[0] != 2 or returned.shape[2:] != x.shape[2:]:
        got = list(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
        raise UserError(f"{name} returned {got} for images {list(x.shape)}; it should return as many, as large")
    return model


def is_named(model: str) -> bool:
    return NAME.fullmatch(model) is not None


def load(model: str) -> Denoiser:
    """What FILE.py:FUNCTION makes, called as the file is. The file is run.

    Raises UserError where file or function is missing, or makes something else.
    """
    match = NAME.fullmatch(model)
    assert match
    path, function = Path(match[1]), match[2]
    if not path.is_file():
        raise UserError(f"no file {path}, of which {function} should make the model")
    spec = importlib.util.spec_from_file_location(f"edge_sampler_model_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its types
    try:
        with neighbours_first(path.parent.resolve()):
            spec.loader.exec_module(module)
            made = getattr(module, function)()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{model} failed: {type(error).__name__}: {error}") from error
    if not isinstance(made, Denoiser):
        raise UserError(f"{model} made a {type(made).__name__}; it should return what edge_sampler.adapt returns")
    made.spec = replace(made.spec, name=path.stem)
    return made


@contextmanager
def neighbours_first(folder: Path) -> Iterator[None]:
    """``folder`` comes first on sys.path, as when a file of it is run.

    A checkout of this project is not on it: its folder ``models`` would hide a user's own that has no __init__.py.
    """
    before = sys.path[:]
    sys.path[:] = [str(folder), *(entry for entry in before if Path(entry).resolve() != ROOMS)]
    try:
        yield
    finally:
        sys.path[:] = [*(entry for entry in sys.path if entry not in (*before, str(folder))), *before]
