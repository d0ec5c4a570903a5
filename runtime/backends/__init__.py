"""Engine libraries, one module each. Every module has the same verbs:

``missing() -> str | None``     why this machine cannot run it, or None
``Session(path, outputs=())``   a context manager with ``run(feed) -> dict``, arrays by name; ``outputs`` names
                                intermediate values to return as well
"""

import importlib
import pkgutil
from types import ModuleType

from runtime.errors import UserError

BACKENDS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def choose(name: str = "auto") -> ModuleType:
    """The backend of that name, or the first that this machine can run. Raises UserError saying what is missing."""
    if name != "auto" and name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        module = importlib.import_module(f"{__name__}.{candidate}")
        reason = module.missing()
        if reason is None:
            return module
        reasons.append(f"{candidate}: {reason}")
    raise UserError(f"no backend can run here ({'; '.join(reasons)})")
