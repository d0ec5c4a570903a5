"""Runs a bundle on this machine.

python -m runtime sample BUNDLE --seeds 0-63 --out grid.png
python -m runtime compare BUNDLE                  # parity: exit 1 beyond --tolerance
python -m runtime bench BUNDLE --batch 1,16
python -m runtime inspect BUNDLE
"""

import argparse
import json
from pathlib import Path

import numpy as np

from runtime import UserError, load
from runtime.backends import BACKENDS
from runtime.bench import EAGER, UNROLLED, bench
from runtime.bundle import Bundle
from runtime.compare import compare, within
from runtime.errors import Parser, run_command, whole_numbers
from runtime.images import save_grid
from runtime.output import writable


def main() -> int:
    parser = Parser(prog="python -m runtime", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help)
        added.add_argument("bundle", type=Path)
        if name != "inspect":
            added.add_argument("--backend", default="auto", help=f"auto (default), {', '.join(BACKENDS)}")
        return added

    command = verb("sample", "make images of seeds")
    command.add_argument("--seeds", type=whole_numbers, default=range(16), help="such as 0-63 or 1,5,9 (default: 0-15)")
    command.add_argument("--class-labels", type=whole_numbers, help="one class, or one for each seed; -1 is none")
    command.add_argument("--batch", type=int, default=64, help="images in one run (default: 64)")
    command.add_argument("--out", type=Path, required=True, help=".png for a grid, .npz for arrays")
    command.add_argument("--force", action="store_true", help="replace an existing file")

    command = verb("compare", "sampler.onnx, baseline loop and PyTorch's recorded output, against each other")
    command.add_argument("--seeds", type=whole_numbers, help="others than those recorded; leaves PyTorch out")
    command.add_argument("--tolerance", type=float, default=1e-4, help="largest relative difference (default: 1e-4)")

    command = verb("bench", "time the unrolled graph, the baseline loop, PyTorch's, and the limit, in alternation")
    command.add_argument("--batch", type=whole_numbers, default=[1], help="such as 1,16 (default: 1)")
    command.add_argument("--rounds", type=int, default=20, help="times that each is run (default: 20)")
    command.add_argument("--weights", help="the checkpoint, for PyTorch's loop on a model that is not in the zoo")

    verb("inspect", "verify every file and print what the bundle is")
    arguments = parser.parse_args()
    return {"sample": sample, "compare": parity, "bench": times, "inspect": inspect}[arguments.verb](arguments)


def sample(arguments: argparse.Namespace) -> int:
    seeds, labels = arguments.seeds, arguments.class_labels
    if arguments.out.suffix not in (".png", ".npz"):
        raise UserError(f"--out {arguments.out}: unknown format {arguments.out.suffix!r}; allowed: .png, .npz")
    with writable(arguments.out, arguments.force) as path, load(arguments.bundle, arguments.backend) as sampler:
        if labels is not None and len(labels) == 1:
            labels = labels[0]
        images = sampler.sample(seeds, labels, arguments.batch)
        if not np.isfinite(images).all():
            raise UserError("the images hold NaN or infinity; run `compare` to find where they start")
        if arguments.out.suffix == ".npz":
            np.savez(path, images=images, seeds=np.array(seeds))
        else:
            save_grid(images, path, "RANDOM WEIGHTS" if sampler.bundle.random_weights else "")
    print(f"{arguments.out}: {len(seeds)} images")
    return 0


def parity(arguments: argparse.Namespace) -> int:
    found = compare(Bundle.open(arguments.bundle), arguments.seeds, arguments.backend)
    print(f"{'stage':<13}{'of':<15}{'against':<15}{'max':>10}{'RMS':>10}{'relative':>10}")
    for d in found:
        verdict = "" if within([d], arguments.tolerance) else "  <- beyond" if d.finite else "  <- not finite"
        print(f"{d.stage:<13}{d.first:<15}{d.second:<15}{d.max:>10.1e}{d.rms:>10.1e}{d.relative:>10.1e}{verdict}")
    passed = within(found, arguments.tolerance)
    print(f"{'within' if passed else 'BEYOND'} the tolerance of {arguments.tolerance:g}")
    return 0 if passed else 1


def times(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    for batch in arguments.batch:
        timings, left_out = bench(bundle, batch, arguments.rounds, arguments.backend, arguments.weights)
        print(f"\nbatch {batch}, nfe {bundle.plan.nfe}, medians of {arguments.rounds} rounds")
        print(f"{'':<20}{'ms':>10}{'images/s':>10}{'of limit':>10}")
        for timing in timings:
            rate = batch / timing.seconds
            print(f"{timing.name:<20}{timing.seconds * 1e3:>10.2f}{rate:>10.1f}{timing.over_limit:>10.3f}")
        seconds = {timing.name: timing.seconds for timing in timings}
        if EAGER in seconds:
            print(
                f"the unrolled graph is {seconds[EAGER] / seconds[UNROLLED]:.1f} times as fast as PyTorch's eager loop"
            )
        for line in left_out:
            print(f"left out: {line}")
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    for name in bundle.manifest["files"]:
        bundle.file(name)
    print(json.dumps({key: value for key, value in bundle.manifest.items() if key != "files"}, indent=1))
    plan = bundle.plan
    print(f"plan: {plan.solver}, {plan.nfe} evaluations at noise levels {', '.join(f'{s:.4g}' for s in plan.sigmas)}")
    for name, recorded in bundle.manifest["files"].items():
        print(f"{recorded['bytes']:>12,} bytes  {name}  verified")
    return 0


if __name__ == "__main__":
    run_command(main)
