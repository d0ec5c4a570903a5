"""Sorts the denoiser's nodes: constants, those that a call computes once, and those that every evaluation repeats."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_sampler.export.canvas import Canvas, Values
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.scratch import scratch

Sources = dict[ir.Value, frozenset[str]]
STATE, LEVEL, GIVEN = "x", "sigma", "given"  # what a value may depend on; the last are conditions and sizes of inputs
CONSTANT = frozenset({LEVEL})


def sources(graph: ir.Graph) -> Sources:
    """What each value of the graph depends on; of weights, nothing. The one walk that decides where a node goes."""
    found: Sources = {
        value: frozenset({str(value.name) if value.name in (STATE, LEVEL) else GIVEN}) for value in graph.inputs
    }
    for node in graph:
        told = frozenset[str]().union(*(found.get(value, frozenset()) for value in node.inputs if value is not None))
        if node.op_type == "Shape" and node.inputs[0] in graph.inputs:
            told = frozenset({GIVEN})  # the noise is as large
        if any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            told |= {STATE}  # a body may read anything around it
        found.update((value, told) for value in node.outputs)
    return found


@dataclass(frozen=True)
class Parts:
    """The exported denoiser, taken apart.

    Args:
        stamped: the nodes that every evaluation repeats.
        once: those that depend on conditions and on sizes of inputs alone.
        constants: what either needs of the rest: noise level → value name → array.
        levelled: the names among ``constants`` that depend on the noise level.
    """

    graph: ir.Graph
    stamped: tuple[ir.Node, ...]
    once: tuple[ir.Node, ...]
    constants: Mapping[float, Mapping[str, np.ndarray]]
    levelled: frozenset[str]

    def bring(self, canvas: Canvas, value: ir.Value, sigma: float) -> ir.Value:
        """A weight, shared by all copies, or a constant, shared by all copies at this noise level."""
        name = str(value.name)
        if value.const_value is not None:
            return canvas.weight(name, value.const_value)
        at = f"@{sigma}" if name in self.levelled else "@all"
        return canvas.constant(f"{name}{at}", self.constants[sigma][name])

    def draw_once(self, canvas: Canvas) -> Values:
        """Draws what every evaluation needs of the conditions, reading sizes off the noise; their values end in @once.

        Returns those values and the conditions by the denoiser's.
        """
        told = {value: str(value.name) for value in self.graph.inputs if value.name != LEVEL}
        values: Values = {value: canvas.inputs["noise" if name == STATE else name] for value, name in told.items()}
        any_level = next(iter(self.constants))
        canvas.copy(
            self.once, values, lambda value: self.bring(canvas, value, any_level), lambda value: f"{value.name}@once"
        )
        return {old: new for old, new in values.items() if told.get(old) != STATE}  # type: ignore[arg-type]


def take_apart(graph: ir.Graph, sigmas: Sequence[float]) -> Parts:
    """The denoiser's nodes by what they depend on, and constants for the rest at each noise level."""
    found = sources(graph)
    once = [node for node in graph if found[node.outputs[0]] == {GIVEN}]
    stamped = [node for node in graph if not found[node.outputs[0]] <= CONSTANT and found[node.outputs[0]] != {GIVEN}]
    needed = {
        value
        for node in (*once, *stamped)
        for value in node.inputs
        if value is not None and not value.is_initializer() and found[value] <= CONSTANT
    }
    constants = evaluate(graph, sorted(str(value.name) for value in needed), sigmas)
    levelled = frozenset(str(value.name) for value in needed if found[value])
    return Parts(graph, tuple(stamped), tuple(once), constants, levelled)


def evaluate(graph: ir.Graph, names: Sequence[str], sigmas: Sequence[float]) -> dict[float, dict[str, np.ndarray]]:
    """The values called ``names``, which depend on sigma alone, at each noise level; computed by ONNX Runtime."""
    feeds = {sigma: {LEVEL: np.array(sigma, np.float32)} for sigma in sigmas}
    computed = [name for name in names if name != LEVEL]
    if not computed:
        return feeds
    with session_of(graph, [LEVEL], computed) as session:
        return {sigma: feed | session.run(feed) for sigma, feed in feeds.items()}


@contextmanager
def session_of(graph: ir.Graph, inputs: Sequence[str], outputs: Sequence[str]) -> Iterator[Session]:
    """ONNX Runtime for a part of the graph, from the values called ``inputs`` to those called ``outputs``."""
    part = ir.convenience.extract(graph, inputs, outputs)
    with scratch() as folder:
        path = folder / "part.onnx"
        ir.save(ir.Model(part, ir_version=10), path)
        with Session(path) as session:
            yield session
