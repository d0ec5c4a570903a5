"""The errors that a user can mend, and text in one line."""

import re

# Characters that steer terminals or the direction of text, and halves of characters.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """Bad input. The message names the input, the allowed values, and what to do, in one line.

    Examples:
        >>> edge_sampler.Settings(nfe=0)
        Traceback (most recent call last):
        edge_sampler.runtime.errors.UserError: nfe is 0; it must be at least 1
    """

    status = 2  # of the command that it ends


class BoundError(UserError):
    """A result beyond the bound that the user set, such as ``max_error``.

    Examples:
        >>> from edge_sampler.runtime.errors import BoundError
        >>> BoundError.status, edge_sampler.UserError.status  # the exit status of a command that one ends
        (1, 2)
    """

    status = 1


def one_line(text: str, most: int = 2_000) -> str:
    """Text of any origin for a terminal: in one line, without what would steer that, its middle left out if long.

    Args:
        text: anything.
        most: characters of it that are shown.

    Returns:
        The line.

    Examples:
        >>> from edge_sampler.runtime.errors import one_line
        >>> one_line("a\x1b[2J\n b"), one_line("x" * 100, most=8)
        ('a\\x1b[2J b', 'xxxx … xxxx')
    """
    half = most // 2
    if len(text) > most:
        text = f"{text[:half]} … {text[len(text) - half :]}"
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in line)


def is_line(text: object, most: int = 2_000) -> bool:
    """Whether it is text that can be shown in one line as it is, and is not too long for that."""
    whole = isinstance(text, str) and len(text) <= most and text.splitlines() in ([], [text])
    return whole and not STEERING.search(str(text))
