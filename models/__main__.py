"""Lists the models that are known by name, or verifies one (``command.py``). Training is ``python -m models.train``.

python -m models --help
"""

from importlib import import_module

from edge_sampler.runtime.command_line import run_command


def main() -> None:
    import_module("edge_sampler.models.command").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
