"""`python -m models.train`, wherever edge-sampler is installed."""

from importlib import import_module

from edge_sampler.runtime.command_line import run_command

if __name__ == "__main__":
    run_command(lambda: import_module("edge_sampler.models.train").main())
