"""How a library that is missing comes into this installation."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]  # if it is one


def install_command(*extras: str, checkout: Path = CHECKOUT) -> str:
    """The command that installs what these extras bring: of the checkout that runs, or of the package."""
    names = f"[{','.join(extras)}]"
    if not (checkout / "pyproject.toml").is_file():
        return f"pip install 'edge-sampler{names}'"
    return f"pip install -e '{'.' if Path.cwd() == checkout else checkout}{names}'"
