"""The commands of edge-sampler.

edge-sampler COMMAND … does what `python -m COMMAND …` does, also in a folder that holds a package of that name.
"""

import sys
from importlib import import_module

from edge_sampler.runtime.command_line import COMMANDS, Parser, run_command


def main() -> None:
    run_command(dispatch)


def dispatch() -> int | None:
    parser = Parser(prog="edge-sampler", description=__doc__)
    parser.add_argument("command", choices=COMMANDS, help="each has a --help of its own")
    command = parser.parse_args(sys.argv[1:2]).command
    del sys.argv[1]
    status: int | None = import_module(f"edge_sampler.{command}.__main__").main()
    return status
