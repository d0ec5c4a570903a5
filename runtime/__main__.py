"""Runs a bundle on this machine (``command.py``).

python -m runtime --help
"""

from importlib import import_module

from edge_sampler.runtime.command_line import run_command


def main() -> int:
    return int(import_module("edge_sampler.runtime.command").main())  # imported late: Ctrl-C is one word even then


if __name__ == "__main__":
    run_command(main)
