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


def code_of(*networks: nn.Module) -> str:
    """SHA-256 of the files of their classes, and of the constants in those, but for installed libraries.

    Comments do not count. A class whose source nobody has, such as one that was typed in, counts by its name.
    """
    classes = {part for network in networks for module in network.modules() for part in type(module).__mro__}
    own = sorted(filter(is_own, classes), key=lambda one: (one.__module__, one.__qualname__))
    files = {one.__module__: (words_of(one), constants_of(one)) for one in own}
    names = {f"{one.__module__}.{one.__qualname__}" for one in own}
    return sha256(repr([sorted(names), sorted(files.items())]).encode()).hexdigest()


def is_own(one: type) -> bool:
    try:
        path = Path(inspect.getfile(one)).resolve()
    except (OSError, TypeError):  # it is built in, or was typed in
        return one.__module__ == "__main__"
    return not any(path.is_relative_to(folder) for folder in (*LIBRARIES, ROOMS / "models"))


def words_of(one: type) -> list[str]:
    """The file that it is in, word by word."""
    try:
        source = Path(inspect.getfile(one)).read_text("utf-8")
        words = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (OSError, TypeError, ValueError, SyntaxError, tokenize.TokenError):
        return []
    return [word.string.strip() or tokenize.tok_name[word.type] for word in words if word.type not in MEANS_NOTHING]


def constants_of(one: type) -> dict[str, Any]:
    """The numbers in capitals of its file, by name: they may come from elsewhere, such as the environment.

    Other variables are not taken: a script counts in them, and keeps times.
    """
    known = vars(sys.modules.get(one.__module__, object))
    return {name: known[name] for name in sorted(known) if name.isupper() and type(known[name]) in (int, float, bool)}
