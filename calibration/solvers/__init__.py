"""Every solver: those in the SOLVERS of each module of this folder. A new family is a new file."""

import difflib
import importlib
import pkgutil

from edge_sampler.calibration.solvers.base import Solver
from edge_sampler.runtime.errors import UserError

_MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
ALL_SOLVERS: tuple[Solver, ...] = tuple(
    solver for name in _MODULES for solver in importlib.import_module(f"{__name__}.{name}").SOLVERS
)


def find(name: str) -> Solver:
    """Finds a solver.

    Args:
        name: its name, or an alias.

    Returns:
        The solver.

    Raises:
        UserError: when there is none, with near matches.

    Examples:
        >>> from edge_sampler.calibration.solvers import find
        >>> find("euler").name, find("iia-ddim").history
        ('ddim', 1)
    """
    by_name = {alias: solver for solver in ALL_SOLVERS for alias in (solver.name, *solver.aliases)}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"unknown solver {name!r}; {hint}known: auto, {', '.join(by_name)}")
    return by_name[name]
