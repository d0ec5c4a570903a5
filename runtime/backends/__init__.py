"""Engine libraries, one module each; ``base.Backend`` says what a module offers. Here, best first."""

from edge_sampler.runtime.backends import onnxrt, trt
from edge_sampler.runtime.backends.base import Backend
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError

BACKENDS = {backend.name: backend for backend in (*trt.BACKENDS, *onnxrt.BACKENDS)}


def choose(bundle: Bundle, name: str = "auto", precision: str | None = None) -> Backend:
    """The backend of that name, or the first that can run the bundle here. Raises UserError saying what is missing.

    ``precision`` None leaves it to the backend: an engine's fastest, ONNX Runtime's float32.
    """
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    reasons = []
    for candidate in BACKENDS.values() if name == "auto" else (BACKENDS[name],):
        reason = candidate.unable(bundle, precision)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name} cannot run this bundle here: {reason}")
    raise UserError("; ".join(reasons))
