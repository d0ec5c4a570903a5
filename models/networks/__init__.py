"""Networks written here, and of libraries: the NETWORKS of each module of this folder. A new family is a new file.

A name of NETWORKS is what an architecture calls ``model_type``, and stands for a function of (resolution, channels in,
channels out, classes, …) that makes the network.
"""

import importlib
import pkgutil
from collections.abc import Callable

from torch import nn

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    name: make for module in _MODULES for name, make in getattr(module, "NETWORKS", {}).items()
}
