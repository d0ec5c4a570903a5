"""A bar ends full when its work is done, and short when it was interrupted."""

import os
from contextlib import redirect_stderr, redirect_stdout

import pytest

from edge_sampler.models.progress import Screen, bar


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_a_bar_that_is_done_is_of_as_many_steps_as_there_were(steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A fit's costs are bounds, and what is kept costs nothing."""
    with bar("work", 10) as advance:
        advance(steps)
    assert f"{steps}/{steps} " in " ".join(capsys.readouterr().err.split())


def test_a_bar_that_is_interrupted_stays_short(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        with bar("work", 10) as advance:
            advance(2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert " 2/10 " in capsys.readouterr().err


def test_who_reads_no_more_ends_a_table_and_not_the_work() -> None:
    """As with `| head`. A fit of hours goes on without its bars."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as gone:
        with redirect_stdout(gone), pytest.raises(BrokenPipeError):
            Screen().print("table")
        with redirect_stderr(gone), bar("work", 2) as advance:
            advance(1)
            advance(1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)  # takes what is in its buffer
