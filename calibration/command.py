"""Fits a sampler's coefficients and writes its plan. Before a long fit it says how long that takes at the most.

python -m calibration --model edm-digits --solver iia-ipndm --nfe 10
python -m calibration --model edm-digits --solver iia-ipndm --nfe 6 --fit-target global --refine
python -m calibration --model edm-cifar10 --nfe 10 --budget 20m
python -m calibration --model edm-cifar10 --solver iia-edm --nfe 11 --paper
python -m calibration --model BUNDLE/denoiser.onnx --nfe 6 --refine
torchrun --nproc-per-node 2 -m calibration --model edm-digits --nfe 10
python -m export --model edm-digits --plan edm-digits-iia-ipndm-nfe10.json
python -m calibration study --help       # measures every solver
python -m calibration ablation --help    # measures what each part of a fit is worth
python -m calibration ship --help        # makes the plans that ship beside the weights
"""

from pathlib import Path

from edge_sampler.calibration.arguments import (
    add_model_arguments,
    add_settings_arguments,
    aim,
    cache,
    file_name,
    load_model,
    settings,
)
from edge_sampler.calibration.budget import afford
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.distributed import joined, written
from edge_sampler.calibration.report import show
from edge_sampler.calibration.task import check_refines
from edge_sampler.models.progress import ProgressBars
from edge_sampler.runtime.command_line import Parser
from edge_sampler.runtime.plan import Plan


def main() -> None:
    parser = Parser(
        prog="python -m calibration",
        description=__doc__,
        common=("--model", "--nfe", "--solver", "--refine", "--guidance", "--out"),
    )
    add_model_arguments(parser)
    add_settings_arguments(parser)
    parser.add_argument("--out", type=Path, help="the plan's file (default: MODEL-SOLVER-nfeN.json)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    wanted = settings(arguments)
    model, towards = load_model(arguments), aim(arguments)
    kept = cache(arguments)
    check_refines(model, wanted, "refine_on", "refine_error")
    with joined(model.device):
        wanted = afford(model, wanted, arguments.budget, towards)
        out = arguments.out or Path(f"{file_name(arguments.model)}-{wanted.sampler}-nfe{wanted.nfe}.json")

        def work(progress: ProgressBars) -> Plan:
            return calibrate(model, wanted, progress, kept, towards)

        plan = written(out, model.device, work, lambda found, path: found.save(path), arguments.force)
    if plan:
        show(plan)
        print(f"{out}: {plan.solver}, {plan.nfe} evaluations")
