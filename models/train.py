"""Trains the models that ship (``training/command.py``).

python -m models.train --help
"""

from importlib import import_module

from edge_sampler.runtime.command_line import run_command


def main() -> None:
    import_module("edge_sampler.models.training.command").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
