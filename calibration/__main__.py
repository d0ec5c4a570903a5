"""Fits a sampler (``command.py``), measures them all (``study_command.py``), or each part (``ablation_command.py``).

python -m calibration --help
python -m calibration study --help
python -m calibration ablation --help
"""

import sys
from importlib import import_module

from runtime.errors import run_command

if __name__ == "__main__":
    module = "calibration.command"
    if sys.argv[1:2] in (["study"], ["ablation"]):
        module = f"calibration.{sys.argv.pop(1)}_command"
    run_command(lambda: import_module(module).main())  # imported late: a missing library is one clear line
