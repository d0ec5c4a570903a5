"""Exports a sampler: see ``export/command.py``, or ``python -m export --help``."""

from importlib import import_module

from runtime.errors import run_command

if __name__ == "__main__":
    run_command(lambda: import_module("export.command").main())  # imported late: a missing library is one clear line
