"""Exports a sampler (``export/command.py``), or adds an engine to a bundle (``export/engine_command.py``).

python -m export --help
python -m export engine --help
"""

import sys
from importlib import import_module

from runtime.command_line import run_command

if __name__ == "__main__":
    module = "export.command"
    if sys.argv[1:2] == ["engine"]:
        module = "export.engine_command"
        del sys.argv[1]
    run_command(lambda: import_module(module).main())  # imported late: a missing library is one clear line
