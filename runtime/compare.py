"""Parity without PyTorch: sampler.onnx, the baseline loop over denoiser.onnx, and PyTorch's recorded output."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from runtime.backends import choose
from runtime.bundle import FLOAT_IMAGES, Bundle
from runtime.noise import unit_noise
from runtime.plan import sample
from runtime.sampler import make_feed

SAMPLER, BASELINE, PYTORCH = "sampler.onnx", "baseline loop", "PyTorch"


@dataclass(frozen=True)
class Trajectory:
    """What one path computed: denoised [nfe, n, C, H, W] at each evaluation, and images [n, C, H, W]."""

    denoised: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class Difference:
    """Of one stage of two paths. ``relative`` is the largest difference over the largest magnitude of the second."""

    stage: str  # "denoised K" or "images"
    first: str
    second: str
    max: float
    rms: float
    relative: float
    finite: bool


def compare(bundle: Bundle, seeds: list[int] | None = None, backend: str = "auto") -> list[Difference]:
    """Differences of every pair of paths at every evaluation and at the end.

    ``seeds`` None takes those for which the bundle holds PyTorch's output; others leave PyTorch out. For a model
    with classes, the i-th seed other than those gets class i modulo their number.
    """
    paths: dict[str, Trajectory] = {}
    if seeds is None:
        with np.load(bundle.file("reference.npz"), allow_pickle=False) as stored:
            seeds, labels = stored["seeds"].tolist(), stored["class_labels"]
            paths[PYTORCH] = Trajectory(stored["denoised"], stored["images"])
    else:
        labels = np.arange(len(seeds), dtype=np.int64) % bundle.classes if bundle.classes else np.full(len(seeds), -1)
    feed = make_feed(unit_noise(seeds, bundle.shape), labels, bundle.classes)
    paths = {SAMPLER: run_sampler(bundle, feed, backend), BASELINE: run_baseline(bundle, feed, backend), **paths}
    names = list(paths)
    return [
        difference
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        for difference in _differences(first, paths[first], second, paths[second])
    ]


def run_sampler(bundle: Bundle, feed: Mapping[str, np.ndarray], backend: str) -> Trajectory:
    """The unrolled graph, its intermediate denoised images fetched as well."""
    stages = [f"denoised_{k}" for k in range(bundle.plan.nfe)]
    images = FLOAT_IMAGES if bundle.output == "uint8" else "images"
    extra = stages if images == "images" else [*stages, images]
    with choose(backend).Session(bundle.graph("sampler.onnx"), extra) as session:
        found = session.run(feed)
    return Trajectory(np.stack([found[stage] for stage in stages]), found[images])


def run_baseline(bundle: Bundle, feed: Mapping[str, np.ndarray], backend: str) -> Trajectory:
    """The plan's loop on the host, one call of denoiser.onnx an evaluation."""
    denoised: list[np.ndarray] = []
    with choose(backend).Session(bundle.graph("denoiser.onnx")) as session:

        def record(x: np.ndarray, sigma: float) -> np.ndarray:
            denoised.append(session.run(baseline_feed(x, sigma, feed))["denoised"])
            return denoised[-1]

        images = sample(record, feed["noise"], bundle.plan)
    return Trajectory(np.stack(denoised), images)


def baseline_feed(x: np.ndarray, sigma: float, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """denoiser.onnx's inputs for one evaluation of the sampler fed ``feed``."""
    labels = {name: array for name, array in feed.items() if name != "noise"}
    return {"x": x, "sigma": np.array(sigma, np.float32), **labels}


def _differences(first: str, a: Trajectory, second: str, b: Trajectory) -> list[Difference]:
    stages = [(f"denoised {k}", *pair) for k, pair in enumerate(zip(a.denoised, b.denoised, strict=True))]
    return [
        Difference(
            stage,
            first,
            second,
            max=float(np.abs(x - y).max()),
            rms=float(np.sqrt(np.mean(np.square(x.astype(np.float64) - y)))),
            relative=float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-30)),
            finite=bool(np.isfinite(x).all() and np.isfinite(y).all()),
        )
        for stage, x, y in [*stages, ("images", a.images, b.images)]
    ]


def within(differences: list[Difference], tolerance: float) -> bool:
    """Whether every value is finite and every relative difference at most ``tolerance``."""
    return all(difference.finite and difference.relative <= tolerance for difference in differences)


def worst(differences: list[Difference], first: str, second: str) -> Difference:
    """The images' difference of that pair."""
    return next(d for d in differences if (d.first, d.second, d.stage) == (first, second, "images"))
