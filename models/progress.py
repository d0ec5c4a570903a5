"""Progress bars: ``with bar(description, total) as advance: … advance(n)``."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
ProgressBars = Callable[[str, int], AbstractContextManager[Advance]]


class Screen(Console):
    """Where tables and bars go. Once nobody reads them, a table ends its command as a shell has it; bars just end."""

    def on_broken_pipe(self) -> None:
        if not self.stderr:
            raise BrokenPipeError
        self.quiet = True


@contextmanager
def bar(description: str, total: int) -> Iterator[Advance]:
    """A bar on standard error, with the time spent and left; it stays when done, of as many steps as there were.

    Args:
        description: what is done.
        total: how many steps that is, at the most.

    Returns:
        A context manager, whose value is a function to be called with so many steps done.

    Examples:
        >>> from edge_sampler.models.progress import bar
        >>> fitted = edge_sampler.fit(model, nfe=2, solver="ddim", progress=bar)
        >>> with bar("by hand", 2) as advance:
        ...     advance(2)
    """
    columns = (
        TextColumn("{task.description:<26}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=Screen(stderr=True)) as shown:
        task = shown.add_task(description, total=total)
        yield lambda amount: shown.advance(task, amount)
        shown.update(task, total=shown.tasks[task].completed)


@contextmanager
def silent(description: str, total: int) -> Iterator[Advance]:
    yield lambda amount: None
