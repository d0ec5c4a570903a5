"""The code of a user's own network: another code is another network, though a few answers may be the same."""

import inspect
import io
import sys
import sysconfig
import tokenize
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

ROOMS = Path(__file__).resolve().parents[1]  # the folder that holds this one
LIBRARIES = tuple(Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib"))
MEANS_NOTHING = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)


def code_of(*networks: nn.Module | None) -> str:
    """SHA-256 of the files of their classes, and of the numbers that those define, but for installed libraries.

    Comments do not count. A class whose source nobody has, such as one that was typed in, counts by its name.
    """
    modules = [module for network in networks if network is not None for module in network.modules()]
    classes = {part for module in modules for part in type(module).__mro__}
    told = {f"{one.__module__}.{one.__qualname__}": (words_of(one), numbers_of(one)) for one in classes if is_own(one)}
    return sha256(repr(sorted(told.items())).encode()).hexdigest()


def is_own(one: type) -> bool:
    try:
        path = Path(inspect.getfile(one)).resolve()
    except (OSError, TypeError):  # it is built in, or was typed in
        return one.__module__ == "__main__"
    return not any(path.is_relative_to(folder) for folder in (*LIBRARIES, ROOMS / "models"))


def words_of(one: type) -> list[str]:
    """The file that it is in, word by word; its own source where that is in no file."""
    try:
        path = Path(inspect.getfile(one))
        source = path.read_text("utf-8") if path.is_file() else inspect.getsource(one)
        words = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):
        return []
    return [word.string.strip() or tokenize.tok_name[word.type] for word in words if word.type not in MEANS_NOTHING]


def numbers_of(one: type) -> dict[str, Any]:
    """By name, the numbers among its file's own variables: they may be from elsewhere, such as the environment."""
    known = vars(sys.modules.get(one.__module__, object))
    return {name: value for name, value in sorted(known.items()) if type(value) in (int, float, bool)}
