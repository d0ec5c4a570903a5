"""How far every family is from its own library's code, as the tests measure it.

python -m tests.parity --out docs/parity.md --force
"""

from pathlib import Path
from typing import cast

import pytest

from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

TESTS = ("tests/models",)
PAGE = """# Parity with other libraries

This project and each network's own library run the same network, from the same noise at the same noise levels. Networks
are small, or of full depth where a row says so; weights are random. A difference is the largest one, relative to the
largest value; of decoded images it is absolute, in [0, 1]. Tests hold the bounds, and this command writes the page:

```sh
# takes minutes
python -m tests.parity --out docs/parity.md --force
```

| family | compared | differs by | allowed |
| --- | --- | ---: | ---: |
{rows}
"""


class Recorder:
    """A plugin of pytest that runs the tests with the fixture ``parity``, and keeps what that was told."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if "parity" in getattr(item, "fixturenames", ())]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "parity":
                self.rows.append(line(*cast(tuple[str, str, float, float], value)))


def line(of: str, what: str, difference: float, bound: float) -> str:
    return f"| {of} | {what} | {difference:.0e} | {bound:.0e} |"


def main() -> None:
    parser = Parser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the page to write, Markdown")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    with writable(arguments.out, arguments.force) as path:
        recorder = Recorder()
        if pytest.main(["-q", "-p", "no:cacheprovider", *TESTS], plugins=[recorder]):
            raise UserError("tests failed; no page is written")
        path.write_text(PAGE.format(rows="\n".join(sorted(recorder.rows))))


if __name__ == "__main__":
    run_command(main)
