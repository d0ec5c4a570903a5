"""Unrolls the whole sampling loop into one graph.

``runtime.plan.sample`` runs over symbolic values. Each call of the denoiser adds one more copy of the denoiser's nodes
to the graph. Copies share every weight. A copy's noise level is a constant. So the export computes all values that
depend on it alone (the embedding network, the preconditioning's factors), and stores them as constants. Nodes that
depend on conditions alone come once, before the first copy.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_sampler.export.canvas import OUTPUTS, Canvas, Ends, Values, draw_mean
from edge_sampler.export.initializer import initializer
from edge_sampler.export.split import split_joined
from edge_sampler.export.take_apart import CONSTANT, Parts, sources, take_apart
from edge_sampler.runtime.plan import Plan, sample


@dataclass(frozen=True)
class Symbol:
    """A weighted sum of the graph's values that knows ``*`` and ``+``, as ``sample`` asks of its terms."""

    terms: tuple[tuple[float, ir.Value], ...]
    canvas: Canvas | None = None  # of an answer, which may be clipped

    def __rmul__(self, factor: float) -> "Symbol":
        return Symbol(tuple((factor * weight, value) for weight, value in self.terms))

    def __add__(self, other: "Symbol") -> "Symbol":
        return Symbol(self.terms + other.terms)

    def clip(self, low: float, high: float) -> "Symbol":
        """One of the graph's values, clipped: a node behind it."""
        ((_, value),) = self.terms
        assert self.canvas is not None
        bounds = [self.canvas.constant(f"clip{bound:g}", np.array(bound, np.float32)) for bound in (low, high)]
        return Symbol(((1.0, self.canvas.add("Clip", [value, *bounds], f"{value.name}_clipped")),))

    def draw(self, canvas: Canvas, name: str) -> ir.Value:
        """The value called ``name``: a product for each term, and one sum of several."""
        several, products = len(self.terms) > 1, []
        for index, (weight, value) in enumerate(self.terms):
            number = np.float32(weight)
            factor = canvas.constant(f"w{number!s}", np.array(number))
            products.append(canvas.add("Mul", [factor, value], f"{name}_{index}" if several else name))
        return canvas.add("Sum", products, name) if several else products[0]


def unroll(
    exported: ir.Model,
    plan: Plan,
    output: str = "float32",
    encoder: ir.Model | None = None,
    decoder: ir.Model | None = None,
    output_name: str = "images",
) -> ir.Model:
    """The graph of the whole sampler: noise float32 [batch, *shape], conditions [batch, …] → ``output_name``.

    ``exported``, ``encoder`` and ``decoder`` are of ``network_graph``; their weights are shared, not copied. Every
    evaluation's denoised sample keeps a name, denoised_0 …; with a decoder the last state is called SAMPLE, and the
    float images are called FLOAT_IMAGES where ``output`` is "uint8": there the graph ends in round, clip and a move to
    [batch, H, W, C].
    """
    assert output in OUTPUTS
    ends = Ends(encoder, decoder, output, output_name)
    graph = exported.graph.clone()
    split_joined(graph)
    add_shifts_to_biases(graph)
    parts = take_apart(graph, sorted(set(plan.sigmas)))
    canvas = ends.open(graph)
    known = parts.draw_once(canvas)
    evaluations = 0

    def stamp(x: Symbol, sigma: float) -> Symbol:
        nonlocal evaluations
        evaluations += 1
        drawn = x.draw(canvas, f"x_{evaluations - 1}")
        return Symbol(((1.0, stamp_denoiser(parts, canvas, known, drawn, sigma, evaluations - 1)),), canvas)

    def constant(mean: np.ndarray) -> Symbol:
        return Symbol(((1.0, draw_mean(canvas, exported, mean)),))

    noise = Symbol(((1.0, canvas.inputs["noise"]),))
    state = sample(stamp, noise, plan, constant=constant).draw(canvas, ends.state_name)
    assert evaluations == plan.nfe
    return ends.close(exported, canvas, state)


def stamp_denoiser(parts: Parts, canvas: Canvas, known: Values, x: ir.Value, sigma: float, evaluation: int) -> ir.Value:
    """One more copy of the denoiser's nodes, reading x; its output is called denoised_``evaluation``.

    The others get an @, which no weight has in its name.
    """
    last = parts.graph.outputs[0]
    values: Values = known | {value: x for value in parts.graph.inputs if value.name == "x"}
    canvas.copy(
        parts.stamped,
        values,
        lambda value: parts.bring(canvas, value, sigma),
        lambda value: f"{value.name}{'_' if value is last else '@'}{evaluation}",
    )
    assert last in values, "the exported denoiser does not depend on x"
    return values[last]


def add_shifts_to_biases(graph: ir.Graph) -> None:
    """convolution + shift → convolution with bias + shift, in place, where the shift depends on the noise level alone.

    That is how DDPM++'s blocks take their embedding; folded, it costs no node and no pass over the images.
    """
    found = sources(graph)
    for node in list(graph):
        if node.op_type != "Add":
            continue
        for convolved, shift in (node.inputs, node.inputs[::-1]):
            assert convolved is not None
            assert shift is not None
            convolution = convolved.producer()
            if convolution is None or convolution.op_type != "Conv" or len(convolved.uses()) > 1:
                continue
            weight = convolution.inputs[1]
            if weight is None or weight.shape is None or not found.get(shift, frozenset()) <= CONSTANT:
                continue
            ones = [1] * (len(weight.shape) - 2)
            if shift.shape != (1, weight.shape[0], *ones):
                continue
            others = initializer(graph, f"all_of_{len(ones) + 2}_but_1", np.array([0, *range(2, len(ones) + 2)]))
            bias = ir.node("Squeeze", [shift, others])
            bias.outputs[0].name = f"{node.outputs[0].name}_shift"  # by their sum: one shift may join several
            graph.insert_before(convolution, bias)
            if len(convolution.inputs) == 3:  # the exporter leaves out a bias of zeros
                bias = ir.node("Add", [convolution.inputs[2], bias.outputs[0]])
                bias.outputs[0].name = f"{node.outputs[0].name}_bias"
                graph.insert_before(convolution, bias)
            convolution.resize_inputs(3)
            convolution.replace_input_with(2, bias.outputs[0])
            ir.convenience.replace_all_uses_with(node.outputs[0], convolved)
            graph.remove(node, safe=True)
            break
    graph.sort()  # a shift may have stood after its convolution
