"""What eight bits cost a sampler: its images against the converged ones, on noises that no fit has seen.

python -m export.quantised_table artifacts/edm-fashion-iia-ddim-afs-nfe6 artifacts/edm-digits-iia-ddim-afs-nfe10
python -m export.quantised_table BUNDLE --noises 256 --picture samples.png   # the same noises, a row for each sampler

Rows: fp32; each quantised precision with one scale for all evaluations, and with a scale for each; the files' sizes;
RMSE and the median of the images' own, and in brackets their ratio to fp32's; FD-fashion where there are features.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.study.measure import Judge, judging
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantised import write_quantised
from edge_sampler.models.loading import load
from edge_sampler.models.progress import bar
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.command_line import Parser, run_command
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import save_grid
from edge_sampler.runtime.output import check_writable, writable

BATCH = 64
SHOWN = 8  # images of each sampler in the picture
HEAD = ("bundle", "sampler", "MB", "RMSE", "of fp32's", "median", "of fp32's", "FD-fashion")


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--noises", type=int, default=1024, help="(default: 1024)")
    parser.add_argument("--picture", type=Path, help="PNG of the first bundle: fp32, and each quantised one, in rows")
    parser.add_argument("--force", action="store_true", help="replace the picture")
    arguments = parser.parse_args()
    if arguments.noises < SHOWN:
        raise UserError(f"--noises is {arguments.noises}; it must be at least {SHOWN}")
    bundles = [Bundle.open(folder) for folder in arguments.bundles]
    for bundle in bundles:
        if bundle.dtype != "float32" or bundle.random_weights:
            raise UserError(f"{bundle.folder}: the table is of float images of trained weights")
    if arguments.picture:
        check_writable(arguments.picture, arguments.force)
    print(f"{arguments.noises} noises\n\n| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}")
    for bundle in bundles:
        shown = rows(bundle, arguments.noises)
        if arguments.picture and bundle is bundles[0]:
            with writable(arguments.picture, arguments.force) as path:
                save_grid(np.concatenate(shown), path)


def rows(bundle: Bundle, noises: int) -> list[np.ndarray]:
    """Prints them; returns the first images of each sampler."""
    judge = judging(load(bundle.manifest["model"]["name"]), noises, Cache(cache_folder() / "calibration"), bar)
    exact: tuple[float, float] | None = None
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in samplers(bundle, Path(folder)):
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


def samplers(bundle: Bundle, folder: Path) -> Iterator[tuple[str, Path]]:
    yield "fp32", bundle.graph("sampler.onnx")
    for precision in QUANTISED:
        for one_scale in (True, False):
            path = folder / f"{precision}-{one_scale}.onnx"
            write_quantised(bundle, precision, path, one_scale=one_scale)
            yield f"{precision}{', one scale' * one_scale}", path


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
