"""Fits a sampler (``command.py``), or measures: all solvers, or each part of a fit (``study/``).

python -m calibration --help
python -m calibration study --help
python -m calibration ablation --help
"""

import sys
from importlib import import_module

from runtime.command_line import run_command

STUDIES = {"study": "calibration.study.command", "ablation": "calibration.study.ablation_command"}

if __name__ == "__main__":
    module = "calibration.command"
    if sys.argv[1:2] and sys.argv[1] in STUDIES:
        module = STUDIES[sys.argv.pop(1)]
    run_command(lambda: import_module(module).main())  # imported late: a missing library is one clear line
