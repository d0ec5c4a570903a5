"""Exports a sampler with its whole loop as one ONNX graph, in a bundle.

python -m export --model edm-digits --nfe 10
python -m export --model edm-cifar10 --weights edm-cifar10-32x32-uncond-vp.pkl --nfe 10 --solver iia-ipndm
python -m export --model edm-cifar10 --random-weights --nfe 10 --solver ipndm      # a dry run
python -m export --model edm-digits --nfe 10 --engine tensorrt-rtx --precision fp16
python -m export --model edm-fashion --nfe 6 --precision int8 --refit              # in eight bits, with a plan for them
python -m export engine --help      # adds an engine, or a precision, to a bundle
python -m export triton --help      # writes a bundle for Triton Inference Server
python -m export card --help        # writes a model hub's README.md
python -m export sign --help        # signs a bundle
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.table import Table

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
from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.judge import Judgement, judge
from edge_sampler.calibration.report import figure, show
from edge_sampler.calibration.settings import MOST_NOISES, OF_A_FIT, hyphens
from edge_sampler.calibration.task import check_refines, task_of
from edge_sampler.export.assemble import Exported, export_bundle, export_graphs
from edge_sampler.export.canvas import OUTPUTS
from edge_sampler.export.engine_command import add_engine_arguments, additions_of
from edge_sampler.export.extend import add, profile_of
from edge_sampler.export.facts import sample_command
from edge_sampler.export.form import Form, output_of
from edge_sampler.export.refitted import REFIT, refitted
from edge_sampler.export.sign import add_sign, signer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import Screen, bar
from edge_sampler.models.shipped import SHIPPED, shipped_plan
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import check_docstrings
from edge_sampler.runtime.output import check_writable
from edge_sampler.runtime.plan import Plan

CHECKED = 16  # noises, unless another number is asked for


def main() -> None:
    parser = Parser(
        prog="python -m export",
        description=__doc__,
        common=("--model", "--nfe", "--plan", "--refine", "--guidance", "--out"),
    )
    add_model_arguments(parser)
    add_settings_arguments(parser, exporting=True)
    group = parser.add_argument_group("export")
    plan_help = "use a file of `python -m calibration` in place of a fit; shipped: the model's own plan for --nfe"
    group.add_argument("--plan", metavar="FILE", help=plan_help)
    group.add_argument(
        "--output",
        choices=OUTPUTS,
        default=OUTPUTS[0],
        help="type of the graph's output; uint8 is [batch, H, W, C] (default: float32)",
    )
    group.add_argument("--samples", type=int, default=16, help="images in samples.png (default: 16)")
    check_help = f"measure the error, and fixed solvers' errors, on N noises (default: {CHECKED}; 0: measure none)"
    group.add_argument("--check", type=int, metavar="N", help=check_help)
    group.add_argument(
        "--no-encode", dest="encode", action="store_false", help="leave the encoder out; the caller runs it"
    )
    group.add_argument(
        "--no-decode", dest="decode", action="store_false", help="leave the decoder out; the caller runs it"
    )
    group.add_argument("--out", type=Path, help="the bundle's folder (default: artifacts/MODEL-SOLVER-nfeN)")
    group.add_argument("--force", action="store_true", help="replace an existing bundle, with all in its folder")
    add_sign(group)
    add_engine_arguments(parser)
    arguments = parser.parse_args()
    check_docstrings("Polygraphy")
    additions = additions_of(arguments)
    if arguments.check is not None and not 0 <= arguments.check <= MOST_NOISES:
        raise UserError(f"--check is {arguments.check}; it must be at least 0 and at most {MOST_NOISES:,}")
    check_plan(arguments, parser)
    if arguments.refit and arguments.towards:
        raise UserError("--refit aims at the model's own images, and --towards at another's: leave one of them out")
    if arguments.check and arguments.towards:
        raise UserError("--check asks for the model's own images, and --towards aims at another's: leave one out")
    if arguments.check and arguments.random_weights:
        raise UserError("--check measures images, and --random-weights make none: leave one of them out")
    form = Form(arguments.output, arguments.samples, arguments.encode, arguments.decode)
    wanted = settings(arguments) if arguments.plan is None else None
    stored = plan_of(arguments) if arguments.plan is not None else None
    if arguments.out:
        check_writable(arguments.out, arguments.force, "bundle")
    sign = signer(arguments.sign) if arguments.sign else None
    model, towards = load_model(arguments), aim(arguments)
    output_of(model, form)  # each of these says at once what cannot be
    model.draw_raw([0])
    if additions:
        profile_of(model.spec.called_with.axes, additions.axes)
    if stored:
        check_fit(model, stored)
        check_writable(out_folder(arguments, stored.solver, stored.nfe), arguments.force, "bundle")
    if wanted:
        check_refines(model, wanted, "refine_error", *[] if arguments.refit else ["refine_on"])
        wanted = afford(model, wanted, arguments.budget, towards)
        if sampler := task_of(model, wanted).sampler:  # then the place is known before the work
            check_writable(out_folder(arguments, sampler, wanted.nfe), arguments.force, "bundle")
    with bar("graph", 1) as advance:
        graphs = export_graphs(model)  # before the fit: what cannot be exported need not be fitted
        advance(1)
    plan = calibrate(model, wanted, bar, cache(arguments), towards) if wanted else stored
    assert plan is not None
    show(plan)
    noises = arguments.check
    if (
        noises is None
    ):  # a budget is for the fit, which is all it pays for; and it is the fit that knows what it aims at
        noises = 0 if arguments.budget or towards else CHECKED
    judgement = judge(model, plan, noises, bar, cache(arguments)) if noises and not model.spec.random_weights else None
    out = out_folder(arguments, plan.solver, plan.nfe)
    exported = export_bundle(
        model, plan, out, form, graphs=graphs, judgement=judgement, force=arguments.force, sign=sign, progress=bar
    )
    Screen().print(summary(model, plan, exported, judgement))
    bundle = Bundle.open(out)
    print(f"{out}: look at report.html; run it with `{sample_command(bundle)}`")
    refit = partial(refitted, model, cache(arguments), like=replace(REFIT, refine_on=arguments.refine_on))
    if additions:  # if that fails, the bundle stays: `python -m export engine` can add to it without another fit
        Screen().print(add(bundle, additions, refit, sign))


def check_plan(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raises UserError unless there is either a plan or what a fit is made with."""
    shipped = arguments.plan == SHIPPED
    if (arguments.plan is None or shipped) == (arguments.nfe is None):
        if arguments.nfe is not None:
            raise UserError(
                f"--nfe {arguments.nfe} is for a fit: --plan {arguments.plan} has its own number; leave it out"
            )
        raise UserError(f"name --nfe to fit a plan, --plan FILE to take one, or --plan {SHIPPED} with --nfe")
    for option in (*OF_A_FIT, "towards", "budget"):
        if option == "refine_on" and arguments.refit:
            continue
        if arguments.plan is not None and getattr(arguments, option) != parser.get_default(option):
            raise UserError(f"--{hyphens(option)} is for a fit, and --plan is fitted already: leave it out")


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The one that ``--plan`` names."""
    if arguments.plan == SHIPPED:
        return shipped_plan(arguments.model, arguments.nfe, arguments.guidance)
    return Plan.load(Path(arguments.plan))


def out_folder(arguments: argparse.Namespace, solver: str, nfe: int) -> Path:
    """Where the bundle goes."""
    parts = [file_name(arguments.model), solver, f"nfe{nfe}"]
    parts += [f"class{arguments.class_label}"] if arguments.class_label is not None else []
    parts += [f"guidance{arguments.guidance:g}"] if arguments.guidance != 1 else []
    parts += [arguments.output] if arguments.output != "float32" else []
    parts += ["random-weights"] if arguments.random_weights else []
    return arguments.out or Path("artifacts") / "-".join(parts)


def summary(model: Denoiser, plan: Plan, exported: Exported, judgement: Judgement | None) -> Table:
    title = model.spec.title + (" with RANDOM WEIGHTS" if model.spec.random_weights else "")
    table = Table(title=title, show_header=False)
    table.add_row("solver", plan.solver)
    table.add_row("network evaluations (NFE)", str(plan.nfe))
    table.add_row("nodes", f"{exported.graphs.nodes} ({exported.graphs.nodes / plan.nfe:.0f} an evaluation)")
    table.add_row("sampler.onnx", f"{exported.graphs.sampler_bytes / 1e6:.1f} MB")
    table.add_row("denoiser.onnx", f"{exported.graphs.denoiser_bytes / 1e6:.1f} MB")
    difference = exported.difference
    table.add_row("error against PyTorch", f"{difference.max:.1e} largest, {difference.rms:.1e} RMS")
    table.add_row("error against the converged solution", measured(plan, judgement))
    if plan.report and plan.report.examples:
        fitted, held = plan.report.examples
        table.add_row("examples of conditions", f"{fitted} fitted on, {held} held out")
    return table


def measured(plan: Plan, judgement: Judgement | None) -> str:
    """By the fit on its held-out noises, and on others beside the fixed solver that errs least on its best levels."""
    told = []
    if plan.report:
        told.append(
            f"{figure(plan.report.heldout_rms_error)} RMS on the {plan.report.heldout} samples that chose this plan"
        )
    if judgement:
        new = "new " if plan.report else ""
        error, median = figure(judgement.error), figure(judgement.median)
        told.append(f"{error} RMS on {judgement.noises} {new}samples; {median} in the median one")
        if judgement.others:
            best = min(judgement.others, key=lambda name: judgement.others[name])
            told.append(
                f"{figure(judgement.others[best])} RMS, the best fixed solver on these: {best}; "
                f"{figure(judgement.other_medians[best])} in the median one"
            )
    return "\n".join(told) or "not measured"
