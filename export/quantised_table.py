"""The cost of eight bits: a sampler's images against the converged ones, on noises that no fit has seen.

python -m export.quantised_table artifacts/edm-digits-auto-nfe10
python -m export.quantised_table BUNDLE --max-error 0.02     # and layers left out until that holds
python -m export.quantised_table BUNDLE --precisions int8 --refit            # and with a plan refitted to them: minutes
python -m export.quantised_table BUNDLE --noises 256 --picture samples.png   # the same noises, a row for each sampler

Rows: fp32; each quantised precision with one scale for all evaluations, with a scale for each, and refitted; MB;
RMSE and the median of the images' own, and in brackets their ratio to fp32's; FD-fashion where there are features.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.study.measure import Judge, judging
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantised import Refit, write_quantised
from edge_sampler.export.refitted import refitted
from edge_sampler.models.loading import load
from edge_sampler.models.progress import bar
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.images import save_grid
from edge_sampler.runtime.output import check_writable, writable
from edge_sampler.runtime.scratch import scratch

BATCH = 64
SHOWN = 8  # images of each sampler in the picture
ONE_SCALE, REFITTED = ", one scale", ", refitted"
HEAD = ("bundle", "sampler", "MB", "RMSE", "of fp32's", "median", "of fp32's", "FD-fashion")


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--noises", type=int, default=1024, help="(default: 1024)")
    bound_help = "RMS against fp32's images: with a scale for each evaluation, layers are left out until it holds"
    precisions_help = f"some of {','.join(QUANTISED)}, which is the default"
    parser.add_argument("--precisions", default=",".join(QUANTISED), help=precisions_help)
    parser.add_argument(
        "--refit", action="store_true", help="and with a plan that is refitted, as --refit of an export"
    )
    parser.add_argument("--max-error", type=float, help=bound_help)
    parser.add_argument("--picture", type=Path, help="PNG of the first bundle: fp32, and each quantised one, in rows")
    parser.add_argument("--force", action="store_true", help="replace the picture")
    arguments = parser.parse_args()
    if arguments.noises < SHOWN:
        raise UserError(f"--noises is {arguments.noises}; it must be at least {SHOWN}")
    precisions = arguments.precisions.split(",")
    if unknown := [name for name in precisions if name not in QUANTISED]:
        raise UserError(f"--precisions {unknown[0]} is none of {', '.join(QUANTISED)}")
    bundles = [Bundle.open(folder) for folder in arguments.bundles]
    for bundle in bundles:
        if bundle.dtype != "float32" or bundle.random_weights:
            raise UserError(f"{bundle.folder}: the table is of float images of trained weights")
    if arguments.picture:
        check_writable(arguments.picture, arguments.force)
    print(f"{arguments.noises} noises\n\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for bundle in bundles:
        shown = rows(bundle, arguments.noises, precisions, arguments.refit, arguments.max_error)
        if arguments.picture and bundle is bundles[0]:
            with writable(arguments.picture, arguments.force) as path:
                save_grid(np.concatenate(shown), path, columns=SHOWN)


def rows(
    bundle: Bundle, noises: int, precisions: Sequence[str], refit: bool, max_error: float | None
) -> list[np.ndarray]:
    """Prints them; returns the first images of each sampler."""
    model, cache = load(bundle.manifest["model"]["name"]), Cache(cache_folder() / "calibration")
    judge, fitting = judging(model, noises, cache, bar), partial(refitted, model, cache) if refit else None
    exact: tuple[float, float] | None = None
    shown = []
    with scratch() as folder:
        for name, path in samplers(bundle, folder, precisions, fitting, max_error):
            images = made(bundle, path, judge)
            squares = (images - judge.goal).square().flatten(1).mean(1)
            errors = float(squares.mean().sqrt()), float(squares.median().sqrt())
            exact = exact or errors
            rmse, median = (f"{error:.4f} | {error / of:.2f}" for error, of in zip(errors, exact, strict=True))
            fd = judge.distance(judge.features(images))
            size, told = path.stat().st_size / 1e6, "" if fd is None else f"{fd:.2f}"
            print(f"| {bundle.folder.name} | {name} | {size:.2f} | {rmse} | {median} | {told} |", flush=True)
            shown.append(images[:SHOWN].numpy())
    return shown


def samplers(
    bundle: Bundle, folder: Path, precisions: Sequence[str], refit: Refit | None, max_error: float | None
) -> Iterator[tuple[str, Path]]:
    """What each is called, and its graph; one that no choice of layers brings within the bound is printed alone."""
    yield "fp32", bundle.graph("sampler.onnx")
    for precision in precisions:
        for variant in (ONE_SCALE, "", REFITTED)[: 3 if refit else 2]:
            path, bound = folder / f"{precision}{variant}.onnx", None if variant == ONE_SCALE else max_error
            fitting = refit if variant == REFITTED else None
            try:
                told = write_quantised(bundle, precision, path, bound, variant == ONE_SCALE, fitting)
            except BoundError as error:
                print(f"| {bundle.folder.name} | {precision} | {error} |{' |' * (len(HEAD) - 3)}", flush=True)
                continue
            left_out = f", without {len(told['kept'])} of {told['layers']} layers" if told["kept"] else ""
            yield f"{precision}{variant}{left_out}", path


def made(bundle: Bundle, path: Path, judge: Judge) -> torch.Tensor:
    """The graph's images of the judge's noises."""
    network = judge.noises.network
    feed = {"noise": judge.noises.noise.float().numpy()}
    feed |= {name: values.numpy() for name, values in network.conditions.items()}
    with Session(path) as session:
        parts = [
            session.run({name: array[start : start + BATCH] for name, array in feed.items()})[bundle.output.name]
            for start in range(0, len(judge.noises), BATCH)
        ]
    return torch.from_numpy(np.concatenate(parts))


if __name__ == "__main__":
    run_command(main)
