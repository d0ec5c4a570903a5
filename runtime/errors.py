"""The one kind of error that a user can mend, and how every command line reports it."""

import errno
import sys
from collections.abc import Callable

__all__ = ["UserError", "run_command"]


class UserError(Exception):
    """Bad input. The message says what came, what is allowed and what to do, in one line."""


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command line's ``main`` and exits: its status, or 2 with one line on standard error for bad input."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        message = " ".join(str(error).split())
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        message = f"cannot write {error.filename or 'the output'}: {error.strerror}"
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
