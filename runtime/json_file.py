"""JSON of files that others may have written or damaged: strict, and bounded in size and depth."""

import json
import math
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_sampler.runtime.errors import UserError

LARGEST = 2**28  # bytes of a file
MOST_VALUES = 2**22  # of a file: the largest plan has 500,000, and each value takes up to 100 bytes
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # begins a character beyond 16 bits, or ends it
ODD = (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError)  # raised by values unlike ours


def read_json(path: Path) -> Any:
    """What a UTF-8 file of JSON holds. Raises OSError; ValueError as ``parse_json``, and for no file or a huge one."""
    return parse_json(read_bytes(path).decode())


def read_bytes(path: Path) -> bytes:
    """Raises OSError, and ValueError for no file or a huge one."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file")
    if (size := path.stat().st_size) > LARGEST:
        raise ValueError(f"{size} bytes, more than a file of ours has")
    return path.read_bytes()


def write_json(path: Path, value: Any) -> None:
    """Raises UserError for NaN and infinity, which no reader of JSON takes."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path.name} would hold a number that is not finite, and is not written") from error
    path.write_text(f"{text}\n", encoding="utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """An object's members. Raises UserError where the file cannot be read or holds anything else."""
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON object ({error})") from error
    return found


def parse_json(text: str) -> Any:
    """As ``json.loads``. Raises ValueError for a name that stands twice, NaN, half a character, deep nesting, and too
    many values.
    """
    if text.count(",") >= MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, and a file of ours has less")
    try:
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
        if HALF.search(text):  # then it may be one; no file or stream could be given it
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    return found


def _object(members: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in members:
        if name in found:
            raise ValueError(f"the name {name!r} stands twice in one object")
        found[name] = value
    return found


def _constant(name: str) -> float:
    """NaN and the infinities, which Python writes though JSON has none: EDM's highest noise level is one."""
    if name == "NaN":
        raise ValueError("NaN is no number of JSON")
    return float(name)


def _number(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is beyond float64")
    return number
