"""Times the ways to run one bundle, in alternation, so that a machine's drift meets all of them alike."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from statistics import median

import numpy as np

from runtime.backends import choose
from runtime.bundle import Bundle
from runtime.compare import baseline_feed
from runtime.errors import UserError
from runtime.noise import unit_noise
from runtime.plan import sample
from runtime.sampler import make_feed

UNROLLED, BASELINE, LIMIT, EAGER = "unrolled graph", "baseline host loop", "limit", "PyTorch eager loop"

SETTLE = 0.2  # seconds; worker threads of the library that ran before spin for a while, and would slow the next
TURN = 0.5  # seconds that a turn lasts at the least

# The PyTorch path lives where PyTorch is known. A package offers it under this entry-point group as a function
# (bundle, weights) → (noise [n, C, H, W], class_labels [n]) → images; it raises UserError when it cannot.
EAGER_GROUP = "edge_sampler.eager"


@dataclass(frozen=True)
class Timing:
    """Seconds of one path for one batch, each a median, and of its ratios to the limit, round by round."""

    name: str
    seconds: float
    over_limit: float


def bench(
    bundle: Bundle, batch: int, rounds: int, backend: str = "auto", weights: str | None = None
) -> tuple[list[Timing], list[str]]:
    """Times every path on one batch, ``rounds`` times in turn; also says which were left out, and why.

    The limit is nfe calls of denoiser.onnx on one input, without a sampler around them.
    """
    if batch < 1 or rounds < 1:
        raise UserError(f"batch is {batch} and rounds {rounds}; both must be at least 1")
    labels = np.arange(batch, dtype=np.int64) % max(1, bundle.classes)
    feed = make_feed(unit_noise(range(batch), bundle.shape), labels, bundle.classes)
    plan, module = bundle.plan, choose(backend)
    with (
        module.Session(bundle.graph("sampler.onnx")) as sampler,
        module.Session(bundle.graph("denoiser.onnx")) as denoiser,
    ):

        def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
            return denoiser.run(baseline_feed(x, sigma, feed))["denoised"]

        def limit() -> None:
            for sigma in plan.sigmas:
                denoise(feed["noise"], sigma)

        paths: dict[str, Callable[[], object]] = {
            LIMIT: limit,
            UNROLLED: lambda: sampler.run(feed),
            BASELINE: lambda: sample(denoise, feed["noise"], plan),
        }
        left_out = []
        try:
            eager = _eager(bundle, weights)
            paths[EAGER] = lambda: eager(feed["noise"], labels)
        except UserError as error:
            left_out.append(f"{EAGER}: {error}")

        seconds: dict[str, list[float]] = {name: [] for name in paths}
        for _ in range(rounds):
            for name, run in paths.items():
                time.sleep(SETTLE)
                run()  # warm again: the paths before it had the caches
                started, runs = time.perf_counter(), 0
                while not runs or time.perf_counter() - started < TURN:
                    run()
                    runs += 1
                seconds[name].append((time.perf_counter() - started) / runs)
    return [
        Timing(name, median(times), median(t / t0 for t, t0 in zip(times, seconds[LIMIT], strict=True)))
        for name, times in seconds.items()
    ], left_out


def _eager(bundle: Bundle, weights: str | None) -> Callable[[np.ndarray, np.ndarray], object]:
    offers = entry_points(group=EAGER_GROUP)
    if not offers:
        raise UserError("no installed package offers it")
    try:
        make = next(iter(offers)).load()
    except ImportError as error:
        raise UserError(f"{error.name} is not installed") from error
    run: Callable[[np.ndarray, np.ndarray], object] = make(bundle, weights)
    return run
