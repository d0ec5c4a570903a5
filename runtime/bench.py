"""Times the ways to run one bundle in alternation, so that a machine's drift affects all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, replace
from importlib.metadata import entry_points
from statistics import fmean, median
from typing import Any

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.backends.base import Spans
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import Baseline
from edge_sampler.runtime.engine_record import MOST_BATCH
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.sampler import feed_of

UNROLLED, BASELINE, LIMIT, EAGER = "unrolled graph", "baseline host loop", "limit", "PyTorch eager loop"

PERCENTILES = (50, 90, 95, 99)

# The PyTorch path lives where PyTorch is known. A package offers it under this entry-point group as a function
# (bundle, weights, on_gpu) → feed → samples, a feed being what sampler.onnx takes; it raises UserError when it cannot.
EAGER_GROUP = "edge_sampler.eager"
MOST_ROUNDS = 2**20


@dataclass(frozen=True)
class Pace:
    """Seconds: that a turn lasts at the least, and before it. Worker threads of the library that ran before spin for a
    while, and would slow the next.
    """

    turn: float = 0.5
    settle: float = 0.2


PACE = Pace()


@dataclass(frozen=True)
class Timing:
    """One path on one batch.

    Args:
        latencies: seconds of every run.
        over_limit: median over rounds of its time over the limit's; None where there is no limit.
        spans: median seconds inside a run, by the GPU's clock; None where the library does not tell.
        memory: bytes that loading and the first run took; 0 where it is not known.
    """

    name: str
    batch: int
    latencies: tuple[float, ...]
    over_limit: float | None = None
    spans: Spans | None = None
    memory: int = 0

    @property
    def throughput(self) -> float:
        """Samples a second."""
        return self.batch * len(self.latencies) / sum(self.latencies)

    def percentile(self, percent: float) -> float:
        """Seconds that so many percent of the runs stay within."""
        return float(np.percentile(self.latencies, percent))

    def summary(self) -> dict[str, Any]:
        """JSON values, seconds and bytes, in trtexec's terms."""
        return {
            "path": self.name,
            "batch": self.batch,
            "runs": len(self.latencies),
            "throughput_images_per_second": self.throughput,
            "latency": {"min": min(self.latencies), "mean": fmean(self.latencies), "max": max(self.latencies)}
            | {f"p{percent}": self.percentile(percent) for percent in PERCENTILES},
            "over_limit": self.over_limit,
            "spans": asdict(self.spans) if self.spans else None,
            "memory_bytes": self.memory or None,
        }


def bench(
    bundle: Bundle,
    batch: int,
    rounds: int,
    backend: str = "auto",
    weights: str | None = None,
    precision: str | None = None,
    pace: Pace = PACE,
) -> tuple[str, list[Timing], list[str]]:
    """Times every path on one batch, ``rounds`` times in turn; says what ran, and which paths were left out, and why.

    The limit is nfe calls of denoiser.onnx on one input, without a sampler around them; an engine has none.
    """
    if not (1 <= batch <= MOST_BATCH and 1 <= rounds <= MOST_ROUNDS):
        most = f"at most {MOST_BATCH:,} and {MOST_ROUNDS:,}"
        raise UserError(f"batch is {batch} and rounds {rounds}; they must be at least 1, and {most}")
    feed = feed_of(bundle, range(batch), bundle.examples(batch))
    chosen, left_out = choose(bundle, backend, precision), list[str]()
    paths: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        if chosen.open_graph:
            paths |= host_paths(bundle, feed, stack.enter_context(Baseline(bundle, chosen.open_graph, bundle.plan)))
        else:
            left_out.append(f"{BASELINE} and {LIMIT}: {chosen.name} runs engines of whole samplers only")
        before = chosen.used_memory()
        sampler = stack.enter_context(chosen.open(bundle, precision, ()))
        if sampler.largest_batch and batch > sampler.largest_batch:
            raise UserError(f"batch is {batch}, and the engine takes {sampler.largest_batch} at most")
        sampler.run(feed)
        memory = max(0, chosen.used_memory() - before)
        paths[UNROLLED] = lambda: sampler.run(feed)
        try:
            eager = _eager(bundle, weights, on_gpu=chosen.name != "onnxrt")
            paths[EAGER] = lambda: eager(feed)
        except UserError as error:
            left_out.append(f"{EAGER}: {error}")
        latencies = alternate(paths, rounds, pace)
        spans = median_spans([sampler.spans(feed) for _ in range(rounds)])
        description = sampler.description
    timings = [
        Timing(
            name,
            batch,
            tuple(seconds for turn in turns for seconds in turn),
            over_limit(turns, latencies[LIMIT]) if LIMIT in latencies else None,
        )
        for name, turns in latencies.items()
    ]
    timings = [replace(t, spans=spans, memory=memory) if t.name == UNROLLED else t for t in timings]
    return description, timings, left_out


def host_paths(bundle: Bundle, feed: Mapping[str, np.ndarray], baseline: Baseline) -> dict[str, Callable[[], object]]:
    """What calls the denoiser evaluation by evaluation: the baseline loop, and the limit, without a stage or a sum."""
    conditions = baseline.encode(feed)

    def limit() -> None:
        for sigma in bundle.plan.sigmas:
            baseline.denoise(feed["noise"], sigma, conditions)

    return {LIMIT: limit, BASELINE: lambda: baseline.run(feed)}


def alternate(
    paths: Mapping[str, Callable[[], object]], rounds: int, pace: Pace = PACE
) -> dict[str, list[list[float]]]:
    """Seconds of every run: by path, by round."""
    latencies: dict[str, list[list[float]]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, run in paths.items():
            time.sleep(pace.settle)
            run()  # warm again: the paths before it had the caches
            turn: list[float] = []
            while sum(turn) < pace.turn:
                started = time.perf_counter()
                run()
                turn.append(time.perf_counter() - started)
            latencies[name].append(turn)
    return latencies


def median_spans(runs: Sequence[Spans | None]) -> Spans | None:
    told = [astuple(run) for run in runs if run is not None]
    return Spans(*np.median(told, axis=0).tolist()) if told else None


def over_limit(turns: list[list[float]], limits: list[list[float]]) -> float:
    return median(fmean(turn) / fmean(limit) for turn, limit in zip(turns, limits, strict=True))


def _eager(bundle: Bundle, weights: str | None, on_gpu: bool) -> Callable[[Mapping[str, np.ndarray]], object]:
    offers = entry_points(group=EAGER_GROUP)
    if not offers:
        raise UserError("no installed package offers it")
    try:
        make = next(iter(offers)).load()
    except ImportError as error:
        raise UserError(f"{error.name} is not installed") from error
    run: Callable[[Mapping[str, np.ndarray]], object] = make(bundle, weights, on_gpu)
    return run
