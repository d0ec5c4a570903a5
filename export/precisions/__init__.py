"""Every lower precision: the PRECISION of each module of this folder. A new one is a new file."""

import importlib
import pkgutil

from edge_sampler.export.precisions.base import Precision, Quantised

_MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
_FOUND = [importlib.import_module(f"{__name__}.{name}").PRECISION for name in _MODULES]
PRECISIONS: dict[str, Precision] = {one.name: one for one in _FOUND if isinstance(one, Precision)}
QUANTISED: dict[str, Quantised] = {one.name: one for one in _FOUND if isinstance(one, Quantised)}
