"""Folders that other libraries save: the FAMILY of each module of this folder. A new family is a new file.

``base.Family`` says what a family offers.
"""

import importlib
import pkgutil
from pathlib import Path

from edge_sampler.models.families.base import Family

_MODULES = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
FAMILIES: list[Family] = [module.FAMILY for module in _MODULES if hasattr(module, "FAMILY")]


def find(folder: Path) -> Family | None:
    """The family that a folder is of; None where it is of none of these."""
    return next((family for family in FAMILIES if family.recognises(folder)), None)
