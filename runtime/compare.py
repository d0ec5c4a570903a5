"""Parity without PyTorch: each backend's sampler, the loop over denoiser.onnx, and PyTorch's recorded output."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Backend, Session
from edge_sampler.runtime.bundle import FLOAT_IMAGES, Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import as_floats
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample
from edge_sampler.runtime.sampler import make_feed

HALF_LEVEL = 0.5 / 127.5  # what rounding to uint8 may change
Feed = Mapping[str, np.ndarray]
BASELINE, PYTORCH = "baseline loop", "PyTorch"  # the other paths are called as their backends


@dataclass(frozen=True)
class Trajectory:
    """What one path computed.

    Args:
        denoised: [nfe, n, C, H, W], at each evaluation; None where the path does not tell.
        images: [n, C, H, W].
        tolerance: how far they may be, relative, from what exact arithmetic gives.
    """

    denoised: np.ndarray | None
    images: np.ndarray
    tolerance: float


@dataclass(frozen=True)
class Difference:
    """Of one stage of two paths. ``relative`` is the largest difference over the largest magnitude of the second.

    ``expected`` is what ``relative`` may be, given the two paths' precisions.
    """

    stage: str  # "denoised K" or "images"
    first: str
    second: str
    max: float
    rms: float
    relative: float
    finite: bool
    expected: float


def compare(
    bundle: Bundle,
    seeds: list[int] | None = None,
    backends: Sequence[str] = ("auto",),
    precision: str | None = None,
) -> list[Difference]:
    """Differences of every pair of paths at the end, and at every evaluation where both tell: each backend's sampler,
    the baseline loop, and PyTorch's recorded output.

    ``seeds`` None takes those for which the bundle holds PyTorch's output; others leave PyTorch out. For a model
    with classes, the i-th seed other than those gets class i modulo their number.
    """
    chosen = [choose(bundle, name, precision) for name in backends]
    recorded: dict[str, Trajectory] = {}
    if seeds is None:
        with np.load(bundle.file("reference.npz"), allow_pickle=False) as stored:
            seeds, labels = stored["seeds"].tolist(), stored["class_labels"]
            recorded[PYTORCH] = Trajectory(stored["denoised"], stored["images"], bundle.tolerance())
    else:
        labels = np.arange(len(seeds), dtype=np.int64) % bundle.classes if bundle.classes else np.full(len(seeds), -1)
    feed = make_feed(unit_noise(seeds, bundle.shape), labels, bundle.classes)
    paths = {backend.name: run_sampler(bundle, feed, backend, precision) for backend in chosen}
    for backend in chosen:
        if backend.open_denoiser is not None:
            paths[BASELINE] = run_baseline(bundle, feed, backend.open_denoiser)
            break
    paths |= recorded
    if len(paths) == 1:
        raise UserError("there is nothing to compare with: leave --seeds out, or name another backend")
    names = list(paths)
    return [
        difference
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        for difference in _differences(first, paths[first], second, paths[second])
    ]


def run_sampler(bundle: Bundle, feed: Feed, backend: Backend, precision: str | None) -> Trajectory:
    """The unrolled graph or its engine; a graph's intermediate denoised images are fetched as well."""
    images, stages = "images", list[str]()
    if backend.open_denoiser is not None:
        stages = [f"denoised_{k}" for k in range(bundle.plan.nfe)]
        images = FLOAT_IMAGES if bundle.output == "uint8" else "images"
    with backend.open(bundle, precision, [*stages, *([images] if images != "images" else [])]) as session:
        found = session.run(feed)
        precision = session.precision
    rounding = HALF_LEVEL if found[images].dtype == np.uint8 else 0
    denoised = np.stack([found[stage] for stage in stages]) if stages else None
    return Trajectory(denoised, as_floats(found[images]), bundle.tolerance(precision) + rounding)


def run_baseline(bundle: Bundle, feed: Feed, open_denoiser: Callable[[Bundle], Session]) -> Trajectory:
    """The plan's loop on the host, one call of denoiser.onnx an evaluation."""
    denoised: list[np.ndarray] = []
    with open_denoiser(bundle) as session:

        def record(x: np.ndarray, sigma: float) -> np.ndarray:
            denoised.append(session.run(baseline_feed(x, sigma, feed))["denoised"])
            return denoised[-1]

        images = sample(record, feed["noise"], bundle.plan)
    return Trajectory(np.stack(denoised), images, bundle.tolerance())


def baseline_feed(x: np.ndarray, sigma: float, feed: Feed) -> dict[str, np.ndarray]:
    """denoiser.onnx's inputs for one evaluation of the sampler fed ``feed``."""
    labels = {name: array for name, array in feed.items() if name != "noise"}
    return {"x": x, "sigma": np.array(sigma, np.float32), **labels}


def _differences(first: str, a: Trajectory, second: str, b: Trajectory) -> list[Difference]:
    stages = [("images", a.images, b.images)]
    if a.denoised is not None and b.denoised is not None:
        pairs = zip(a.denoised, b.denoised, strict=True)
        stages = [*((f"denoised {k}", *pair) for k, pair in enumerate(pairs)), *stages]
    return [
        Difference(
            stage,
            first,
            second,
            max=float(np.abs(x - y).max()),
            rms=float(np.sqrt(np.mean(np.square(x.astype(np.float64) - y)))),
            relative=float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)),
            finite=bool(np.isfinite(x).all() and np.isfinite(y).all()),
            expected=max(a.tolerance, b.tolerance),
        )
        for stage, x, y in stages
    ]


def within(differences: list[Difference], tolerance: float | None) -> bool:
    """Whether every value is finite and every relative difference at most ``tolerance``; None: what is expected."""
    return all(d.finite and d.relative <= (d.expected if tolerance is None else tolerance) for d in differences)


def worst(differences: list[Difference], first: str, second: str) -> Difference:
    """The images' difference of that pair."""
    return next(d for d in differences if (d.first, d.second, d.stage) == (first, second, "images"))
