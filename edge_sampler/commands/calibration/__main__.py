"""`python -m calibration`, wherever edge-sampler is installed.

This folder has no __init__.py, so that a user's own package of that name takes precedence.
"""

from edge_sampler.calibration.__main__ import main
from edge_sampler.runtime.command_line import run_command

if __name__ == "__main__":
    run_command(main)
