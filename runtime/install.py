"""How a library that is missing comes into this installation, and what one needs of Python."""

import sys
from pathlib import Path

from edge_sampler.runtime.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[1]  # if it is one


def install_command(*extras: str, checkout: Path = CHECKOUT) -> str:
    """The command that installs what these extras bring: of the checkout that runs, or of the package."""
    names = f"[{','.join(extras)}]"
    if not (checkout / "pyproject.toml").is_file():
        return f"pip install 'edge-sampler{names}'"
    return f"pip install -e '{'.' if Path.cwd() == checkout else checkout}{names}'"


def check_docstrings(library: str) -> None:
    """Raises UserError where Python leaves docstrings out, for a library that does not load without its own."""
    if sys.flags.optimize > 1:
        raise UserError(f"Python leaves out docstrings (-OO or PYTHONOPTIMIZE=2), and {library} does not load without")
