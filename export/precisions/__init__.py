"""Every lower precision: the PRECISION of each module of this folder. A new one is a new file."""

import importlib
import pkgutil

from edge_sampler.export.precisions.base import Precision

_MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
_FOUND: tuple[Precision, ...] = tuple(importlib.import_module(f"{__name__}.{name}").PRECISION for name in _MODULES)
PRECISIONS: dict[str, Precision] = {precision.name: precision for precision in _FOUND}
