"""Engine libraries: the BACKENDS of each module of this folder, best first. A new one is a new file.

``base.Backend`` says what a backend offers.
"""

import importlib
import pkgutil
from collections.abc import Mapping

from edge_sampler.runtime.backends.base import Backend
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
_FOUND: list[Backend] = [backend for module in _MODULES for backend in getattr(module, "BACKENDS", ())]
BACKENDS = {backend.name: backend for backend in sorted(_FOUND, key=lambda backend: backend.rank)}


def choose(
    bundle: Bundle, name: str = "auto", precision: str | None = None, known: Mapping[str, Backend] = BACKENDS
) -> Backend:
    """The backend of that name, or the first that can run the bundle here.

    Args:
        bundle: an open bundle.
        name: one of ``known``, or "auto".
        precision: a precision of the bundle; None leaves it to the backend: an engine's fastest, ONNX Runtime's fp32.
        known: backends by name, best first.

    Returns:
        The backend. Nothing is loaded yet.

    Raises:
        UserError: for an unknown name, a precision that the bundle has not, and if no backend can run the bundle; the
            message says what each one lacks.

    Examples:
        >>> from edge_sampler.runtime.backends import choose
        >>> choose(edge_sampler.Bundle.open("shrink"), "onnxrt").gpu
        False
    """
    if name != "auto" and name not in known:
        raise UserError(f"unknown backend {name!r}; known: auto, {', '.join(known)}")
    if name == "auto" and precision is not None and precision not in bundle.precisions:  # one reason for all backends
        raise UserError(
            f"the bundle has no precision {precision!r:.40}; it has {', '.join(bundle.precisions)}: name one "
            "of them, or add another with python -m export engine BUNDLE --precision NAME"
        )
    reasons = []
    for candidate in known.values() if name == "auto" else (known[name],):
        reason = candidate.lacks() or candidate.unable(bundle, precision)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name} cannot run this bundle here: {reason}")
    raise UserError("; ".join(reversed(reasons)))  # the last is what most machines have
