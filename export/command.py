"""Exports a sampler, its whole loop, as one ONNX graph in a bundle.

python -m export --model edm-digits --nfe 10
python -m export --model edm-cifar10 --weights edm-cifar10-32x32-uncond-vp.pkl --nfe 10 --solver iia-ipndm
python -m export --model edm-cifar10 --random-weights --nfe 10 --solver ipndm      # a dry run
python -m export --model edm-digits --nfe 10 --engine tensorrt-rtx --precision fp16
python -m export engine BUNDLE --engine tensorrt-rtx                               # for a bundle that is there
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_sampler.calibration.arguments import add_model_arguments, add_settings_arguments, cache, load_model, settings
from edge_sampler.calibration.calibrate import calibrate, error_against_converged, fitted_to
from edge_sampler.calibration.report import show
from edge_sampler.export.assemble import close, parity, write_graphs, write_reference, write_samples
from edge_sampler.export.engine_command import add_engine_arguments, additions_of
from edge_sampler.export.extend import add
from edge_sampler.export.unroll import OUTPUTS
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import bar
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import check_writable, writable
from edge_sampler.runtime.plan import Plan

CHECKED = 16  # images of a fixed solver, unless another number is asked for


def main() -> None:
    parser = Parser(prog="python -m export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_settings_arguments(parser, exporting=True)
    group = parser.add_argument_group("export")
    group.add_argument("--plan", type=Path, help="of `python -m calibration`, instead of --nfe, --solver and the rest")
    group.add_argument("--output", choices=OUTPUTS, default=OUTPUTS[0], help="of the graph; uint8 is [batch, H, W, C]")
    group.add_argument("--samples", type=int, default=16, help="images in samples.png (default: 16)")
    check_help = f"noises to measure the error on (default: {CHECKED}; of a fitted plan, its fit's own); 0: none"
    group.add_argument("--check", type=int, metavar="N", help=check_help)
    group.add_argument("--out", type=Path, help="default: artifacts/MODEL-SOLVER-nfeN")
    group.add_argument("--force", action="store_true", help="replace an existing bundle")
    add_engine_arguments(parser)
    arguments = parser.parse_args()
    additions = additions_of(arguments)
    for name, value, least in (("samples", arguments.samples, 1), ("check", arguments.check, 0)):
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")
    if (arguments.plan is None) == (arguments.nfe is None):
        raise UserError("name either --nfe (to calibrate) or --plan (already calibrated)")
    wanted = settings(arguments) if arguments.plan is None else None
    if wanted and (arguments.out or wanted.solver != "auto"):  # then the place is known before the work
        check_writable(target(arguments, wanted.sampler, wanted.nfe), arguments.force)
    stored = Plan.load(arguments.plan) if arguments.plan else None
    model = load_model(arguments)
    plan = calibrate(model, wanted, bar, cache(arguments)) if wanted else stored
    assert plan is not None
    for what, own in fitted_to(model).items():
        fitted = plan.calibration.get(what, own)
        if fitted != own:
            raise UserError(f"{arguments.plan} was fitted to another {what}, {fitted} instead of {own}: fit it again")
    if plan.afs and np.shape(plan.mean) != model.spec.shape:
        raise UserError(
            f"{arguments.plan} has a mean of {np.shape(plan.mean)} for images of {model.spec.shape}: fit it again"
        )
    show(plan)
    out = target(arguments, plan.solver, plan.nfe)
    with writable(out, arguments.force) as folder:
        summary = make_bundle(model, plan, folder, arguments)
    Console().print(summary)
    print(f"{out}: look at samples.png; run it with `python -m runtime sample {out} --seeds 0-63 --out grid.png`")
    if additions:  # if that fails, the bundle stays: `python -m export engine` can add to it without another fit
        Console().print(add(Bundle.open(out), additions))


def target(arguments: argparse.Namespace, solver: str, nfe: int) -> Path:
    """Where the bundle goes."""
    parts = [Path(arguments.model).stem, solver, f"nfe{nfe}"]
    parts += [f"class{arguments.class_label}"] if arguments.class_label is not None else []
    parts += [f"guidance{arguments.guidance:g}"] if arguments.guidance != 1 else []
    parts += [arguments.output] if arguments.output != "float32" else []
    parts += ["random-weights"] if arguments.random_weights else []
    return arguments.out or Path("artifacts") / "-".join(parts)


def make_bundle(model: Denoiser, plan: Plan, folder: Path, arguments: argparse.Namespace) -> Table:
    """Fills the folder; returns the table to print."""
    folder.mkdir()
    error, images, fit = None, arguments.check, plan.calibration
    if images is None and fit:
        error, images = fit["heldout_rms_error"], fit["settings"]["heldout"]
    elif images != 0 and not model.spec.random_weights:
        images = images or CHECKED
        error = error_against_converged(model, plan, images, bar, cache(arguments))
    with bar("export", 5) as advance:
        plan.save(folder / "plan.json")
        write_reference(model, plan, folder, arguments.output)
        advance(1)
        graphs = write_graphs(model.cpu(), plan, folder, arguments.output)
        advance(1)
        close(folder, model, plan, arguments.output)
        difference = parity(folder)
        advance(1)
        write_samples(folder, model, arguments.samples)
        advance(1)
        close(folder, model, plan, arguments.output)
        advance(1)
    title = model.spec.title + (" with RANDOM WEIGHTS" if model.spec.random_weights else "")
    table = Table(title=title, show_header=False)
    table.add_row("solver", plan.solver)
    table.add_row("network evaluations (NFE)", str(plan.nfe))
    table.add_row("nodes", f"{graphs.nodes} ({graphs.nodes / plan.nfe:.0f} an evaluation)")
    table.add_row("sampler.onnx", f"{graphs.sampler_bytes / 1e6:.1f} MB")
    table.add_row("denoiser.onnx", f"{graphs.denoiser_bytes / 1e6:.1f} MB")
    table.add_row("error against PyTorch", f"{difference.max:.1e} largest, {difference.rms:.1e} RMS")
    measured = "not measured" if error is None else f"{error:.4f} RMS, {images} images"
    table.add_row("error against the converged solution", measured)
    return table
