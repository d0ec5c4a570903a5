"""Fits a sampler (``command.py``), or all that ship (``ship.py``); or measures: all solvers, or each part of a fit.

python -m calibration --help
python -m calibration study --help
python -m calibration ablation --help
python -m calibration ship --help
"""

import sys
from importlib import import_module

from edge_sampler.runtime.command_line import run_command

OTHERS = {"study": "study.command", "ablation": "study.ablation_command", "ship": "ship"}


def main() -> None:
    module = OTHERS[sys.argv.pop(1)] if sys.argv[1:2] and sys.argv[1] in OTHERS else "command"
    import_module(f"edge_sampler.calibration.{module}").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
