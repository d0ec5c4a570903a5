"""Adds an engine, or a graph in another precision, to a bundle. Only a first --refit needs PyTorch.

python -m export engine BUNDLE --engine tensorrt-rtx --target sm86,sm89,sm120 --precision fp16
python -m export engine BUNDLE --engine tensorrt --batch 1:4:16          # on the device that will run it
python -m export engine BUNDLE --precision bf16 --max-error 0.02         # only the graph, no engine
python -m export engine BUNDLE --precision int8                          # in eight bits
python -m export engine BUNDLE --precision int8 --refit                  # with a plan for it; needs PyTorch, minutes
"""

import argparse
from dataclasses import replace
from pathlib import Path

from edge_sampler.export.build_engine import engine_for
from edge_sampler.export.extend import Additions, add, base_name
from edge_sampler.export.facts import sample_command
from edge_sampler.export.precisions import PRECISIONS, QUANTISED
from edge_sampler.export.sign import add_sign, signer
from edge_sampler.models.progress import Screen
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.engine_record import LIBRARIES, Batch
from edge_sampler.runtime.errors import UserError


def main() -> None:
    parser = Parser(
        prog="python -m export engine",
        description=__doc__,
        common=("--engine", "--precision", "--target", "--batch", "--max-error", "--refit"),
    )
    parser.add_argument("bundle", type=Path, help="a folder that `python -m export` made")
    add_verify_key(parser)
    add_engine_arguments(parser)
    parser.add_argument("--force", action="store_true", help="build again what is there")
    add_sign(parser)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    additions = additions_of(arguments)
    if additions is None:
        raise UserError("nothing to add: name an --engine, a --precision other than fp32, or both")
    there = [base_name(engine.file) for engine in bundle.engines]
    if additions.engine and base_name(additions.engine.file) in there and not arguments.force:
        raise UserError(f"{bundle.folder} holds {additions.engine.file} already; add --force to build it again")
    table = add(bundle, additions, sign=signer(arguments.sign) if arguments.sign else None)
    Screen().print(table)
    alone = "" if additions.engine else f" --precision {additions.precision}"  # ONNX Runtime takes fp32 unasked
    print(f"{bundle.folder}: run it with `{sample_command(bundle)}{alone}`")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--engine", choices=tuple(LIBRARIES), help="build an engine; tensorrt builds only for this machine's GPU"
    )
    group.add_argument("--target", help="compute capabilities for tensorrt-rtx, such as sm86,sm89,sm120")
    group.add_argument("--batch", help="images in one run: N, or MIN:OPT:MAX (default: 1)")
    axis_help = "sizes of a named axis: N, or MIN:OPT:MAX (default: all that the bundle takes); may be repeated"
    group.add_argument("--axis", action="append", default=[], metavar="NAME=SIZES", help=axis_help)
    loop_help = "build a loop over one evaluation: it builds sooner, but may not run as a CUDA graph"
    group.add_argument("--loop", action="store_true", help=loop_help)
    group.add_argument(
        "--precision",
        choices=("fp32", *PRECISIONS, *QUANTISED),
        default="fp32",
        help="precision of the network (default: fp32)",
    )
    max_error_help = (
        "the largest RMS change of the images that you allow; beyond it the command adds nothing and ends with status "
        "1. Eight bits first leave layers out; with --refit, the bound is for the refitted sampler"
    )
    group.add_argument("--max-error", type=float, help=max_error_help)
    one_scale_help = "int8 and fp8: use the same scales in all evaluations, for comparison"
    group.add_argument("--one-scale", action="store_true", help=one_scale_help)
    refit_help = "int8 and fp8: refine the plan while layers are rounded; the command first says how long that takes"
    group.add_argument("--refit", action="store_true", help=refit_help)


def additions_of(arguments: argparse.Namespace) -> Additions | None:
    """What the arguments ask for, checked; None when they ask for nothing."""
    additions = Additions(
        arguments.precision, arguments.max_error, one_scale=arguments.one_scale, refit=arguments.refit
    )
    if arguments.loop and arguments.engine is None:
        raise UserError("--loop is for an engine: name it with --engine")
    for option in ("target", "batch", "axis"):
        value = getattr(arguments, option)
        if value not in (None, []) and arguments.engine is None:
            of_fit = "" if option == "axis" else f" (a fit's: --fit-{option})"
            raise UserError(f"--{option} {value or repr('')} is for an engine: name it with --engine{of_fit}")
    if arguments.engine is None:
        return None if arguments.precision == "fp32" else additions
    batch = Batch.parse("1" if arguments.batch is None else arguments.batch)
    engine = engine_for(arguments.engine, arguments.target, arguments.precision, batch, arguments.loop)
    sizes = [text.partition("=") for text in arguments.axis]
    axes = {name: Axis.parse(of) for name, _, of in sizes}
    if len(axes) < len(sizes):
        raise UserError(f"--axis {' --axis '.join(arguments.axis)}: name each axis once")
    return replace(additions, engine=engine, axes=axes)
