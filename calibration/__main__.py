"""Fits a sampler (``command.py``), or measures: all solvers, or each part of a fit (``study/``).

python -m calibration --help
python -m calibration study --help
python -m calibration ablation --help
"""

import sys
from importlib import import_module

from edge_sampler.runtime.command_line import run_command

STUDIES = {"study": "study.command", "ablation": "study.ablation_command"}


def main() -> None:
    module = STUDIES[sys.argv.pop(1)] if sys.argv[1:2] and sys.argv[1] in STUDIES else "command"
    import_module(f"edge_sampler.calibration.{module}").main()  # imported late: a missing library is one clear line


if __name__ == "__main__":
    run_command(main)
