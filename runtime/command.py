"""Runs a bundle on this machine. `python -m runtime sample --help` shows the options of `sample`, and so on.

python -m runtime sample BUNDLE --seeds 0-63 --out grid.png
python -m runtime sample BUNDLE --condition prompt="a red heart" --out hearts.png
python -m runtime compare BUNDLE                  # parity: exit 1 beyond --tolerance
python -m runtime compare BUNDLE --backends onnxrt,tensorrt-rtx
python -m runtime bench BUNDLE --batch 1,16 --json times.json
python -m runtime inspect BUNDLE
python -m runtime generate BUNDLE --seeds 0-999999 --out shards/
python -m runtime serve BUNDLE                    # over HTTP; KServe's protocol, version 2
python -m runtime page BUNDLE --out site/         # a web page that makes images in the browser
python -m runtime doctor                          # what runs here: exit 0, 1 (not on a GPU) or 2 (nothing)
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from itertools import cycle
from pathlib import Path

import numpy as np

from edge_sampler.runtime import doctor
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.bench import EAGER, UNROLLED, bench
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key, conditions_of, whole_numbers
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.images import save_grid
from edge_sampler.runtime.json_file import write_json
from edge_sampler.runtime.manifest import built_in
from edge_sampler.runtime.output import check_writable, writable
from edge_sampler.runtime.sampler import Sampler

LONGEST = 60  # characters of classes that a message spells out

# Verbs with a room of their own, which has a `command.main`, and their help.
ROOMS = {
    "generate": "make very many, in shards, by several processes",
    "serve": "answer requests over HTTP",
    "page": "write a web page that makes images in the browser",
}


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in ROOMS:
        room = import_module(f"edge_sampler.runtime.{sys.argv.pop(1)}.command")  # a missing library is one clear line
        return int(room.main())
    parser = Parser(prog="python -m runtime", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, help: str, *common: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.", common=common)
        added.add_argument("bundle", type=Path, help="a folder that `python -m export` made")
        add_verify_key(added)
        if name != "inspect":
            known = ", ".join(BACKENDS)
            if name == "compare":
                added.add_argument("--backends", default="auto", help=f"one or more of auto (default), {known}")
            else:
                added.add_argument("--backend", default="auto", help=f"auto (default), {known}")
            default = "an engine's fastest; fp32 in ONNX Runtime"
            added.add_argument("--precision", help=f"the network's, such as fp16 (default: {default})")
        return added

    first = ("--seeds", "--condition", "--class-labels", "--out", "--precision", "--force")
    command = verb("sample", "make images, or the bundle's other output, from seeds", *first)
    command.add_argument("--seeds", type=whole_numbers, default=range(16), help="such as 0-63 or 1,5,9 (default: 0-15)")
    command.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a number, numbers such as 1,2,3, a text, or FILE.npy; FILE.npz alone gives several; may be repeated",
    )
    command.add_argument("--class-labels", type=whole_numbers, help="as --condition class_labels=…, such as 3 or 0,1,2")
    command.add_argument(
        "--temperature", type=float, help="scales the noise (default: as the sampler is fitted, often 1)"
    )
    command.add_argument("--batch", type=int, help="images in one run (default: an engine's largest, or up to 64)")
    command.add_argument("--out", type=Path, required=True, help=".png for a grid, .npz for arrays")
    command.add_argument("--force", action="store_true", help="replace an existing file")

    command = verb("compare", "compare a backend's images with a loop over denoiser.onnx, and with PyTorch's record")
    command.add_argument(
        "--seeds", type=whole_numbers, help="other seeds than the recorded ones; PyTorch's output is then left out"
    )
    expected = "1e-4; in lower precision three times what the export measured, with a bound for the median sample too"
    command.add_argument("--tolerance", type=float, help=f"largest relative difference (default: {expected})")

    first = ("--batch", "--rounds", "--backend", "--precision", "--json", "--force")
    help = "time the graph, a loop over denoiser.onnx, PyTorch's loop, and single network calls, in turn"
    command = verb("bench", help, *first)
    command.add_argument("--batch", type=whole_numbers, default=[1], help="such as 1,16 (default: 1)")
    command.add_argument("--rounds", type=int, default=20, help="how many times each one runs (default: 20)")
    command.add_argument("--weights", help="the checkpoint, for PyTorch's loop on a model without a name")
    command.add_argument("--json", type=Path, help="also write the figures to this file")
    command.add_argument("--force", action="store_true", help="replace an existing file")

    for name, told in ROOMS.items():
        verbs.add_parser(name, help=told)
    command = verb("inspect", "verify every file, and print a summary of the bundle")
    command.add_argument("--json", action="store_true", help="print the manifest in place of a summary")
    help = "show what this machine has, which backends run here, and why others do not"
    command = verbs.add_parser("doctor", help=help, description=f"{help[0].upper()}{help[1:]}.")
    command.add_argument("bundle", type=Path, nargs="?", help="say which backends run this bundle")
    add_verify_key(command)
    arguments = parser.parse_args()
    verb_of = {"sample": sample, "compare": parity, "bench": times, "inspect": inspect, "doctor": diagnosis}
    return verb_of[arguments.verb](arguments)


def sample(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    known = bundle.inputs.conditions
    seeds, conditions = arguments.seeds, conditions_of(arguments, known)
    if arguments.class_labels is not None:
        labels = arguments.class_labels
        conditions["class_labels"] = labels_of(seeds, labels) if "class_labels" in known else labels
    if arguments.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out {arguments.out}: unknown format {arguments.out.suffix!r}; allowed: .png, .npz")
    with (
        writable(arguments.out, arguments.force) as path,
        Sampler(bundle, arguments.backend, arguments.precision) as sampler,
    ):
        output = bundle.output
        if arguments.out.suffix == ".png" and not output.is_image:
            raise UserError(f"it makes {output.name} {list(output.shape)}, no pictures: write them with --out FILE.npz")
        made = sampler.sample(seeds, arguments.batch, arguments.temperature, **conditions)
        if not np.isfinite(made).all():
            other = ", or give conditions that the network takes, such as ids of its tables" * bool(known)
            raise BoundError(f"the {output.name} hold NaN or infinity; run `compare` to find where they start{other}")
        if arguments.out.suffix == ".npz":
            np.savez(path, **{output.name: made, "seeds": np.array(seeds)})  # type: ignore[arg-type]
        else:
            save_grid(made, path, "RANDOM WEIGHTS" if bundle.random_weights else "")
    print(f"{arguments.out}: {len(seeds)} {output.name}, by {sampler.description}")
    return 0


def labels_of(seeds: Sequence[int], labels: list[int]) -> list[int]:
    """``--class-labels`` of these seeds. Raises UserError for neither one nor one for each seed: what to type then."""
    if len(labels) in (1, len(seeds)):
        return labels
    given = f"--class-labels names {len(labels)} classes for {len(seeds)} seeds; give one, or one for each seed"
    in_turn = spans([label for label, _ in zip(cycle(labels), seeds, strict=False)])
    typed = f": --class-labels {in_turn} takes these in turn" if len(in_turn) <= LONGEST else ""
    raise UserError(f"{given}{typed}; `python -m runtime generate` takes any number of classes in turn")


def spans(numbers: Sequence[int]) -> str:
    """As a command line has them: 0-9,0-9,3."""
    starts = [i for i, number in enumerate(numbers) if not i or number != numbers[i - 1] + 1]
    runs = [numbers[i:j] for i, j in zip(starts, [*starts[1:], len(numbers)], strict=True)]
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def parity(arguments: argparse.Namespace) -> int:
    names = arguments.backends.split(",")
    if arguments.tolerance is not None and not 0 <= arguments.tolerance < np.inf:
        raise UserError(f"--tolerance is {arguments.tolerance}; it must be a number, 0 or above")
    found = compare(Bundle.open(arguments.bundle, arguments.verify_key), arguments.seeds, names, arguments.precision)
    width = max(len(name) for d in found for name in (d.first, d.second)) + 2
    print(f"{'stage':<13}{'of':<{width}}{'against':<{width}}{'max':>10}{'RMS':>10}{'relative':>10}")
    for d in found:
        verdict = "" if within([d], arguments.tolerance) else "  <- beyond" if d.finite else "  <- not finite"
        print(
            f"{d.stage:<13}{d.first:<{width}}{d.second:<{width}}{d.max:>10.1e}{d.rms:>10.1e}{d.relative:>10.1e}{verdict}"
        )
    passed = within(found, arguments.tolerance)
    ran = {name: precision for d in found for name, precision in zip((d.first, d.second), d.precisions, strict=True)}
    if {*ran.values()} != {"fp32"}:
        print("; ".join(f"{name} in {precision}" for name, precision in ran.items()))
    allowed = f"{max(d.expected for d in found) if arguments.tolerance is None else arguments.tolerance:.1e}"
    medians = (
        [d.expected_median for d in found if np.isfinite(d.expected_median)] if arguments.tolerance is None else []
    )
    of_median = f"{max(medians):.1e} for the RMS of the median sample, and of " if medians else ""
    print(f"{'within' if passed else 'BEYOND'} the tolerance of {of_median}{allowed}")
    return 0 if passed else 1


def times(arguments: argparse.Namespace) -> int:
    bundle, written = Bundle.open(arguments.bundle, arguments.verify_key), []
    if arguments.json:
        check_writable(arguments.json, arguments.force)
    for batch in arguments.batch:
        description, timings, left_out = bench(
            bundle, batch, arguments.rounds, arguments.backend, arguments.weights, arguments.precision
        )
        written += [{"what": description, "nfe": bundle.plan.nfe, **timing.summary()} for timing in timings]
        print(f"\nbatch {batch}, nfe {bundle.plan.nfe}, {arguments.rounds} rounds; {description}")
        print(f"{'':<20}{'images/s':>10}{'median ms':>11}{'p90':>9}{'p95':>9}{'p99':>9}{'of limit':>10}")
        for t in timings:
            milliseconds = "".join(f"{t.percentile(p) * 1e3:>{w}.2f}" for p, w in ((50, 11), (90, 9), (95, 9), (99, 9)))
            ratio = "" if t.over_limit is None else f"{t.over_limit:.3f}"
            print(f"{t.name:<20}{t.throughput:>10.1f}{milliseconds}{ratio:>10}")
        if any(t.over_limit is not None for t in timings):
            print(
                f"limit: {bundle.plan.nfe} calls of denoiser.onnx and nothing else; of limit: a path's time over that"
            )
        unrolled = next(t for t in timings if t.name == UNROLLED)
        if unrolled.spans:
            spans = (f"{name.replace('_', ' ')} {value * 1e3:.3f} ms" for name, value in asdict(unrolled.spans).items())
            print("inside: " + ", ".join(spans))
        if unrolled.memory:
            print(f"memory: {unrolled.memory / 1e6:.0f} MB")
        for t in timings:
            if t.name == EAGER:
                faster = t.percentile(50) / unrolled.percentile(50)
                print(f"the unrolled graph is {faster:.1f} times as fast as PyTorch's eager loop")
        for line in left_out:
            print(f"left out: {line}")
    if arguments.json:
        with writable(arguments.json, arguments.force) as path:
            write_json(path, written)
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    for name in bundle.manifest["files"]:
        bundle.file(name)
    refitted = [name for name, one in bundle.manifest.get("precisions", {}).items() if "plan_sha256" in one]
    plans = {name: bundle.plan_of(name) for name in ("", *refitted)}
    if arguments.json:
        print(json.dumps(bundle.manifest, indent=1))
        return 0
    model = bundle.manifest["model"]
    told = [model["name"], *built_in(model), *["RANDOM WEIGHTS"] * bundle.random_weights]
    print(f"model: {', '.join(told)}; licence {model['licence']}")
    print(f"makes {bundle.makes}")
    for name, condition in bundle.inputs.conditions.items():
        print(f"takes {name}: {condition.wanted()}{condition.description and '; ' + condition.description}")
    for name, axis in bundle.inputs.axes.items():
        print(f"axis {name}: {axis}, usually {axis.usual}")
    for name, plan in plans.items():
        levels = ", ".join(f"{sigma:.4g}" for sigma in plan.sigmas)
        of = f" of {name}, refitted" if name else ""
        print(
            f"plan{of}: {plan.solver}, {plan.nfe} evaluations at noise levels {levels}"
            f"{', analytical first step' * plan.afs}; SHA-256 of its numbers {plan.sha256}"
        )
    for name, told in bundle.manifest.get("precisions", {}).items():
        print(f"precision: {name}, {told['rms_error']:.1e} RMS from fp32's {bundle.output.name}")
    for engine in bundle.engines:
        targets = ", ".join(engine.targets)
        print(f"engine: {engine.flavour} {engine.version}, {engine.precision}, batch {engine.batch}, for {targets}")
    for name, recorded in bundle.manifest["files"].items():
        print(f"{recorded['bytes']:>12,} bytes  {name}  verified")
    return 0


def diagnosis(arguments: argparse.Namespace) -> int:
    if arguments.verify_key and not arguments.bundle:
        raise UserError(f"--verify-key {arguments.verify_key} is for a bundle: name it")
    for name, what in doctor.machine():
        print(f"{name:<13}{what}")
    found = doctor.findings(Bundle.open(arguments.bundle, arguments.verify_key) if arguments.bundle else None)
    print(f"\n{'backend':<21}runs {arguments.bundle or 'here'}")
    for finding in found:
        print(f"{finding.backend:<21}{'yes' if finding.reason is None else f'no: {finding.reason}'}")
    return doctor.status(found)
