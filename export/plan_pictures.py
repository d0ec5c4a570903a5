"""Draws the tables of docs/concepts.md: python -m export.plan_pictures --out docs/concepts"""

import argparse
from pathlib import Path

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.report_page import table_drawn
from edge_sampler.models import load
from edge_sampler.models.shipped import shipped_plan
from edge_sampler.runtime.command_line import run_command
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.plan import Plan

STYLE = (
    "<style>svg { font: 11px monospace; background: #fff; } .plus { fill: #1e6ebe; } .minus { fill: #c85a14; } "
    ".cell { stroke: #d9dee3; }</style>"
)


def plans() -> dict[str, Plan]:
    """Of edm-digits, by picture: Euler's method, Heun's, and one that ships."""
    model = load("edm-digits")
    fixed = {name: calibrate(model, Settings(5, solver)) for name, solver in (("euler", "ddim"), ("heun", "heun"))}
    return fixed | {"fitted": shipped_plan("edm-digits", 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, plan in plans().items():
        drawn = table_drawn(plan).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        with writable(out / f"{name}.svg", force=True) as path:
            path.write_text(drawn.replace(">", f">{STYLE}", 1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
