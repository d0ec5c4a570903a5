"""How much another form of a sampler's graph changes the images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import denoised_name
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.sampler import feed_of

CHECKED_VALUES = 16_384  # that many, in 4 to 64 samples, tell a precision's error
FIRST_CHECKED_SEED = 1_000_000  # not the seeds that people look at


def image_error(bundle: Bundle, path: Path, optimise: bool, against: Path | None = None) -> dict[str, float]:
    """Of the graph at ``path`` against sampler.onnx, or another of float32: RMS, largest, and largest relative to the
    largest value, of what it makes and of each evaluation's answer; over a few seeds, computed on the CPU. ``optimise``
    lets ONNX Runtime fuse that graph's nodes.

    Raises UserError where it makes NaN or infinity and the other does not.
    """
    count = number_of_samples(bundle, CHECKED_VALUES)
    seeds = range(FIRST_CHECKED_SEED, FIRST_CHECKED_SEED + count)
    feed = feed_of(bundle, seeds, bundle.examples(count, held=True))
    exact, *answers = floats_made(bundle, against or bundle.graph("sampler.onnx"), feed, optimise=True)
    made, *others = floats_made(bundle, path, feed, optimise)
    if not np.isfinite(made).all() and np.isfinite(exact).all():
        raise UserError(
            f"{path.stem} makes NaN or infinity where sampler.onnx does not: the network's values leave the range of "
            "that precision; nothing was added (bf16 has the range of float32)"
        )
    difference = made - exact
    largest = float(np.abs(difference).max())
    inside = [
        np.abs(one - other).max() / max(np.abs(one).max(), 1e-30) for one, other in zip(answers, others, strict=True)
    ]
    return {
        "samples": count,
        "rms_error": float(np.sqrt(np.mean(np.square(difference, dtype=np.float64)))),
        "largest_error": largest,
        "relative_error": largest / max(float(np.abs(exact).max()), 1e-30),
        "relative_error_inside": float(max(inside)),
    }


def number_of_samples(bundle: Bundle, values: int) -> int:
    """How many have so many values; 4 to 64."""
    return min(64, max(4, values // int(np.prod(bundle.inputs.sized()))))


def floats_made(bundle: Bundle, path: Path, feed: Mapping[str, np.ndarray], optimise: bool) -> list[np.ndarray]:
    """What it makes, and the answer of each evaluation."""
    name, answers = bundle.inner_output, [denoised_name(k) for k in range(bundle.plan.nfe)]
    with Session(path, [*answers, *([name] if name != bundle.output.name else [])], optimise=optimise) as session:
        made = session.run(feed)
    return [made[one].astype(np.float32) for one in (name, *answers)]
