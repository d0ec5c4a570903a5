"""A bar ends full when its work is done, and short when it was interrupted."""

import pytest

from edge_sampler.models.progress import bar


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
