"""A child process that is given so long, and no longer."""

import os
import signal
import time
from contextlib import suppress


def status_within(child: int, seconds: float, pause: float) -> int | None:
    """The exit status of a child that leads a process group; None where it had not ended after that time.

    It is looked at every ``pause`` seconds. Whatever is left of its group is killed at the end.
    """
    ends = time.monotonic() + seconds
    try:
        while time.monotonic() < ends:
            if (done := os.waitpid(child, os.WNOHANG))[0]:
                return os.waitstatus_to_exitcode(done[1])
            time.sleep(pause)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
