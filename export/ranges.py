"""Measures the size of values that are to be quantised, in each evaluation, on the plan's own trajectories.

The plan says which states each evaluation sees, so that ranges are measured where they will be used. The sampler runs
once for its states; then each evaluation's nodes run alone, so that only one evaluation's values are in memory.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precisions.base import Quantised
from edge_sampler.export.quantise import to_eight_bits
from edge_sampler.export.save import save_checked
from edge_sampler.models.progress import Advance
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import denoised_name
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.scratch import scratch

BINS = 4096
CLIPS = np.linspace(0.1, 1, 91)  # parts of the largest value that are tried
AT_ONCE = 2**26  # values that one run may return


class Histogram:
    """How often magnitudes occur, in bins up to a ``top`` that doubles as larger ones come."""

    def __init__(self) -> None:
        self.counts, self.top, self.largest = np.zeros(BINS), 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Raises UserError for values that are not finite."""
        magnitudes = np.abs(values).reshape(-1)
        largest = float(magnitudes.max(initial=0))
        if not np.isfinite(largest):
            raise UserError("the network computes NaN or infinity on the plan's own noises: its weights are unusable")
        self.largest = max(self.largest, largest)
        self.top = self.top or largest or 1.0
        while largest > self.top:
            self._double()
        places = np.minimum((magnitudes * (BINS / self.top)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(places, minlength=BINS)

    def _double(self) -> None:
        self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
        self.top *= 2

    def together(self, other: "Histogram") -> "Histogram":
        """Of the values of both."""
        both = Histogram()
        both.top, both.largest = max(self.top, other.top), max(self.largest, other.largest)
        for one in (self, other):
            middles = (np.arange(BINS) + 0.5) * one.top / BINS
            places = np.minimum((middles * (BINS / both.top)).astype(np.int32), BINS - 1)
            both.counts += np.bincount(places, one.counts, BINS)
        return both

    def best(self, eight: Quantised) -> float:
        """What the largest number is to stand for, so that values err least: the least mean square of differences."""
        middles = (np.arange(BINS) + 0.5) * self.top / BINS
        errors = []
        for clip in CLIPS * self.largest:
            scale = max(clip / eight.largest, np.finfo(np.float32).tiny)
            errors.append(
                self.counts @ np.square(middles - scale * to_eight_bits(middles / scale, eight).astype(float))
            )
        return float(CLIPS[int(np.argmin(errors))] * self.largest)


def observe(
    bundle: Bundle, names: Mapping[int, Sequence[str]], feed: Mapping[str, np.ndarray], advance: Advance
) -> dict[str, Histogram]:
    """A histogram of each value of sampler.onnx, ``names`` by evaluation, over the samples that ``feed`` makes.

    ``advance`` is told of each evaluation.
    """
    path, found = bundle.graph("sampler.onnx"), dict[str, Histogram]()
    states = [f"x_{evaluation}" for evaluation in names]
    with Session(path, states) as session:
        reached = session.run(feed)
    for evaluation, state in zip(names, states, strict=True):
        wanted = list(names[evaluation])
        found |= {name: Histogram() for name in wanted}
        with scratch() as folder:
            part = folder / "part.onnx"
            save_checked(one_evaluation(ir.load(path), evaluation), part)
            with Session(part, wanted) as session:
                rows, count = slice(0, 1), len(reached[state])
                while rows.start < count:
                    made = session.run({name: array[rows] for name, array in {**feed, state: reached[state]}.items()})
                    for name in wanted:
                        found[name].add(made[name])
                    size = max(1, AT_ONCE * (rows.stop - rows.start) // sum(made[name].size for name in wanted))
                    rows = slice(rows.stop, min(rows.stop + size, count))
        advance(1)
    return found


def one_evaluation(sampler: ir.Model, evaluation: int) -> ir.Model:
    """The nodes of the sampler's graph that make an evaluation's answer of its state, which becomes an input."""
    graph = sampler.graph
    values = {value.name: value for node in graph for value in node.outputs}
    drawn, answer = values[f"x_{evaluation}"], values[denoised_name(evaluation)]
    noise = next(value for value in graph.inputs if value.name == "noise")
    state = ir.Value(name=drawn.name, shape=noise.shape, type=noise.type)
    drawn.name = f"{drawn.name}_drawn"
    ir.convenience.replace_all_uses_with(drawn, state)
    answer.shape, answer.type = noise.shape, noise.type
    graph.inputs.append(state)  # noise stays one: what is drawn once may read its shape
    graph.outputs[:] = [answer]
    RemoveUnusedNodesPass()(sampler)
    drop_unused(graph)
    return sampler


def clip_points(histograms: Mapping[str, Histogram], eight: Quantised, one_scale: bool) -> dict[str, float]:
    """What the largest number is to stand for, by value; with ``one_scale`` the same in every evaluation."""
    if not one_scale:
        return {name: histogram.best(eight) for name, histogram in histograms.items()}
    shared: dict[str, list[str]] = {}
    for name in histograms:
        shared.setdefault(name.rpartition("@")[0], []).append(name)
    return {
        name: best
        for names in shared.values()
        for best in [reduce(Histogram.together, (histograms[name] for name in names)).best(eight)]
        for name in names
    }
