"""Collects what the GPU tests measure, and prints it as one table at the end.

python -m pytest tests/gpu                                  # skips, with the reason, what this machine cannot run
python -m pytest tests/gpu --cifar10 --table docs/gpu.md    # as well edm-cifar10, and the table as a file
"""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

HEADINGS = ("model", "what", "precision", "batch", "images/s", "median ms", "p99 ms", "RMS error", "largest", "MB")


@dataclass
class Measured:
    """Rows of text, one a measurement, under HEADINGS."""

    rows: list[tuple[str, ...]] = field(default_factory=list)

    def markdown(self) -> str:
        lines = [HEADINGS, tuple("---" for _ in HEADINGS), *self.rows]
        return "".join(f"| {' | '.join(row)} |\n" for row in lines)


MEASURED = pytest.StashKey[Measured]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cifar10", action="store_true", help="measure edm-cifar10 with random weights as well (slow)")
    parser.addoption("--table", type=Path, help="write the GPU tests' table there, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = Measured()


@pytest.fixture(scope="session")
def measured(request: pytest.FixtureRequest) -> Measured:
    return request.config.stash[MEASURED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash[MEASURED]
    if found.rows:
        terminalreporter.write_sep("=", "measured")
        terminalreporter.write(found.markdown())
        if path := config.getoption("--table"):
            path.write_text(found.markdown())
