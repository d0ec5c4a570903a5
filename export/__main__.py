"""Exports a sampler (``export/command.py``), or makes something of a bundle.

python -m export --help
python -m export engine --help    # adds an engine to a bundle
python -m export triton --help    # a model repository of Triton, of a bundle
python -m export card --help      # a model hub's README.md, of a bundle
python -m export sign --help      # signs a bundle
"""

import sys
from importlib import import_module

from edge_sampler.runtime.command_line import run_command

VERBS = {"engine": "engine_command", "triton": "triton", "card": "card", "sign": "sign"}  # and their modules


def main() -> None:
    module = "command"
    if sys.argv[1:2] and sys.argv[1] in VERBS:
        module = VERBS[sys.argv.pop(1)]
    import_module(f"edge_sampler.export.{module}").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
