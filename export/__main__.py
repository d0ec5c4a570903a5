"""Exports a sampler (``export/command.py``), or adds an engine to a bundle (``export/engine_command.py``).

python -m export --help
python -m export engine --help
"""

import sys
from importlib import import_module

from edge_sampler.runtime.command_line import run_command


def main() -> None:
    module = "command"
    if sys.argv[1:2] == ["engine"]:
        module = "engine_command"
        del sys.argv[1]
    import_module(f"edge_sampler.export.{module}").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
