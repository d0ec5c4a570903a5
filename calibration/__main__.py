"""Fits a sampler (``calibration/command.py``), or measures them all (``calibration/study_command.py``).

python -m calibration --help
python -m calibration study --help
"""

import sys
from importlib import import_module

from runtime.errors import run_command

if __name__ == "__main__":
    module = "calibration.command"
    if sys.argv[1:2] == ["study"]:
        module = "calibration.study_command"
        del sys.argv[1]
    run_command(lambda: import_module(module).main())  # imported late: a missing library is one clear line
