"""What is counted, in Prometheus' text format. Source: prometheus.io, "Exposition formats", version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)
OUTCOMES = ("ok", "bad_request", "queue_full", "unavailable", "failed", "cancelled")


class Histogram:
    """Counts of values up to each of ``bounds``, and above."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
        yield f"{name}_sum{{{labels}}} {self.sum}"
        yield f"{name}_count{{{labels}}} {total}"


@dataclass
class Metrics:
    """Of one model."""

    requests: Counter[str] = field(default_factory=Counter)  # by outcome
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))  # of those that were answered
    batches: Histogram = field(default_factory=lambda: Histogram(SIZES))  # images in a run
    waiting: int = 0  # images


def page(metrics: Mapping[str, Metrics]) -> str:
    """All models' metrics, by name."""
    labels = {name: f'model="{_escaped(name)}"' for name in metrics}
    lines = [*_head("requests_total", "counter", "Requests for images, by outcome.")]
    for name, one in metrics.items():
        lines += [
            f'edge_sampler_requests_total{{{labels[name]},outcome="{outcome}"}} {one.requests[outcome]}'
            for outcome in OUTCOMES
        ]
    lines += _head("queue_images", "gauge", "Images that wait for a run.")
    lines += [f"edge_sampler_queue_images{{{labels[name]}}} {one.waiting}" for name, one in metrics.items()]
    lines += _head("batch_images", "histogram", "Images in one run.")
    for name, one in metrics.items():
        lines += one.batches.lines("edge_sampler_batch_images", labels[name])
    lines += _head("request_seconds", "histogram", "Seconds of a request that was answered, its arrival included.")
    for name, one in metrics.items():
        lines += one.seconds.lines("edge_sampler_request_seconds", labels[name])
    return "\n".join(lines) + "\n"


def _head(name: str, kind: str, help: str) -> tuple[str, str]:
    return f"# HELP edge_sampler_{name} {help}", f"# TYPE edge_sampler_{name} {kind}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
