"""Unrolls the whole sampling loop into one graph.

``runtime.plan.sample`` runs over symbolic values; each time it calls the denoiser, one more copy of the denoiser's
nodes is stamped into the graph. Copies share every weight. A copy's noise level is a constant, so whatever depends on
that alone (the embedding network, the preconditioning's factors) is computed now and stored as a constant.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import FLOAT_IMAGES
from edge_sampler.runtime.plan import Plan, sample

OUTPUTS = ("float32", "uint8")


@dataclass(frozen=True)
class Parts:
    """The exported denoiser, taken apart: the nodes to stamp, and the constants that each noise level gives them."""

    graph: ir.Graph
    stamped: tuple[ir.Node, ...]
    constants: Mapping[float, Mapping[str, np.ndarray]]  # noise level → value name → array


class Canvas:
    """The graph being drawn: nodes in order, constants and weights by value."""

    def __init__(self, inputs: Sequence[ir.Value]) -> None:
        self.inputs = {str(value.name): value for value in inputs}
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """The initializer of that name, made when it is new."""
        return self.weight(name, ir.tensor(array, name=name))

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        if name not in self.weights:
            self.weights[name] = ir.Value(
                name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
        return self.weights[name]

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: Mapping[str, ir.Attr] | None = None,
    ) -> ir.Value:
        node = ir.Node("", op_type, inputs, attributes or {}, outputs=[ir.Value(name=output)], name=output)
        self.nodes.append(node)
        return node.outputs[0]


@dataclass(frozen=True)
class Symbol:
    """A weighted sum of the graph's values that knows ``*`` and ``+``, as ``sample`` asks of its terms."""

    terms: tuple[tuple[float, ir.Value], ...]

    def __rmul__(self, factor: float) -> "Symbol":
        return Symbol(tuple((factor * weight, value) for weight, value in self.terms))

    def __add__(self, other: "Symbol") -> "Symbol":
        return Symbol(self.terms + other.terms)

    def draw(self, canvas: Canvas, name: str) -> ir.Value:
        """The value called ``name``: a product for each term, and one sum."""
        products = []
        for index, (weight, value) in enumerate(self.terms):
            number = np.float32(weight)
            factor = canvas.constant(f"w{number!s}", np.array(number))
            products.append(canvas.add("Mul", [factor, value], f"{name}_{index}"))
        return canvas.add("Sum", products, name)


def unroll(exported: ir.Model, plan: Plan, output: str = "float32") -> ir.Model:
    """The graph of the whole sampler: noise float32 [batch, C, H, W] (and class_labels int64 [batch]) → images.

    ``exported`` is of ``export_denoiser``; its weights are shared, not copied. Every evaluation's denoised image keeps
    a name, denoised_0 …, and the float images are called FLOAT_IMAGES where ``output`` is "uint8": there the graph
    ends in round, clip and a move to [batch, H, W, C].
    """
    assert output in OUTPUTS
    graph = exported.graph.clone()
    add_shifts_to_biases(graph)
    parts = take_apart(graph, sorted(set(plan.sigmas)))
    canvas = open_canvas(graph)
    noise = Symbol(((1.0, canvas.inputs["noise"]),))
    evaluations = 0

    def stamp(x: Symbol, sigma: float) -> Symbol:
        nonlocal evaluations
        evaluations += 1
        drawn = x.draw(canvas, f"x_{evaluations - 1}")
        return Symbol(((1.0, stamp_denoiser(parts, canvas, drawn, sigma, evaluations - 1)),))

    def constant(image: np.ndarray) -> Symbol:
        return Symbol(((1.0, canvas.constant("afs_mean", image)),))

    images = sample(stamp, noise, plan, constant).draw(canvas, images_name(output))
    assert evaluations == plan.nfe
    return close_canvas(exported, canvas, images, output)


def open_canvas(graph: ir.Graph) -> Canvas:
    """A canvas with the sampler's inputs: noise, like the denoiser's x, and all but its sigma."""
    inputs = {value.name: value for value in graph.inputs if value.name != "sigma"}
    inputs["noise"] = inputs.pop("x")
    return Canvas([ir.Value(name=name, shape=value.shape, type=value.type) for name, value in inputs.items()])


def images_name(output: str) -> str:
    """What the float images are called: the graph's output, or the last value before it."""
    return "images" if output == "float32" else FLOAT_IMAGES


def close_canvas(exported: ir.Model, canvas: Canvas, images: ir.Value, output: str) -> ir.Model:
    """The sampler that was drawn, ending in float ``images``, made uint8 [batch, H, W, C] where ``output`` says so."""
    shape, dtype = canvas.inputs["noise"].shape, ir.DataType.FLOAT
    assert shape is not None
    if output == "uint8":
        images, dtype = append_uint8(canvas, images), ir.DataType.UINT8
        shape = ir.Shape([shape[0], shape[2], shape[3], shape[1]])
    images.shape, images.type = shape, ir.TensorType(dtype)
    drawn = ir.Graph(
        [canvas.inputs["noise"], *(value for name, value in canvas.inputs.items() if name != "noise")],
        [images],
        nodes=canvas.nodes,
        initializers=list(canvas.weights.values()),
        opset_imports=dict(exported.graph.opset_imports),
        name="sampler",
    )
    return ir.Model(drawn, ir_version=exported.ir_version, producer_name=exported.producer_name)


def take_apart(graph: ir.Graph, sigmas: Sequence[float]) -> Parts:
    """Splits the denoiser's nodes into those that depend on more than the noise level, and constants for the rest."""
    varying = depend_on_images(graph)
    stamped = [node for node in graph if node.outputs[0] in varying]
    needed = {
        value
        for node in stamped
        for value in node.inputs
        if value is not None and value not in varying and not value.is_initializer()
    }
    return Parts(graph, tuple(stamped), evaluate(graph, sorted(str(value.name) for value in needed), sigmas))


def depend_on_images(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on more than the noise level: on x, or on class_labels."""
    varying = {value for value in graph.inputs if value.name != "sigma"}
    for node in graph:
        if any(value in varying for value in node.inputs):
            varying.update(node.outputs)
    return varying


def add_shifts_to_biases(graph: ir.Graph) -> None:
    """convolution + shift → convolution with bias + shift, in place, where the shift depends on the noise level alone.

    That is how DDPM++'s blocks take their embedding; folded, it costs no node and no pass over the images.
    """
    varying = depend_on_images(graph)
    for node in list(graph):
        if node.op_type != "Add":
            continue
        for convolved, shift in (node.inputs, node.inputs[::-1]):
            assert convolved is not None
            assert shift is not None
            convolution = convolved.producer()
            if convolution is None or convolution.op_type != "Conv" or len(convolved.uses()) > 1 or shift in varying:
                continue
            weight = convolution.inputs[1]
            if weight is None or weight.shape is None or shift.shape != (1, weight.shape[0], 1, 1):
                continue
            bias = ir.node("Squeeze", [shift])
            bias.outputs[0].name = f"{shift.name}_flat"
            graph.insert_before(convolution, bias)
            if len(convolution.inputs) == 3:  # the exporter leaves out a bias of zeros
                bias = ir.node("Add", [convolution.inputs[2], bias.outputs[0]])
                bias.outputs[0].name = f"{shift.name}_bias"
                graph.insert_before(convolution, bias)
            convolution.resize_inputs(3)
            convolution.replace_input_with(2, bias.outputs[0])
            ir.convenience.replace_all_uses_with(node.outputs[0], convolved)
            graph.remove(node, safe=True)
            break
    graph.sort()  # a shift may have stood after its convolution


def evaluate(graph: ir.Graph, names: Sequence[str], sigmas: Sequence[float]) -> dict[float, dict[str, np.ndarray]]:
    """The values called ``names``, which depend on sigma alone, at each noise level; computed by ONNX Runtime."""
    part = ir.convenience.extract(graph, ["sigma"], [name for name in names if name != "sigma"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "constants.onnx"
        ir.save(ir.Model(part, ir_version=10), path)
        with Session(path) as session:
            feeds = {sigma: {"sigma": np.array(sigma, np.float32)} for sigma in sigmas}
            return {sigma: feed | session.run(feed) for sigma, feed in feeds.items()}


def stamp_denoiser(parts: Parts, canvas: Canvas, x: ir.Value, sigma: float, evaluation: int) -> ir.Value:
    """One more copy of the denoiser's nodes, reading x; its output is called denoised_``evaluation``.

    The others get an @, which no weight has in its name.
    """
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    last = parts.graph.outputs[0]
    for graph_input in parts.graph.inputs:
        if graph_input.name != "sigma":
            values[graph_input] = x if graph_input.name == "x" else canvas.inputs[str(graph_input.name)]
    for node in parts.stamped:
        for value in node.inputs:
            if value not in values:
                assert value is not None
                values[value] = _bring(parts, canvas, value, sigma)
        outputs = [ir.Value(name=f"{value.name}{'_' if value is last else '@'}{evaluation}") for value in node.outputs]
        canvas.nodes.append(
            ir.Node(
                node.domain,
                node.op_type,
                [values[value] for value in node.inputs],
                node.attributes.values(),
                outputs=outputs,
                name=outputs[0].name,
            )
        )
        values.update(zip(node.outputs, outputs, strict=True))
    denoised = values[last]
    assert denoised is not None, "the exported denoiser does not depend on x"
    return denoised


def _bring(parts: Parts, canvas: Canvas, value: ir.Value, sigma: float) -> ir.Value:
    """A weight, shared by all copies, or a constant, shared by all copies at this noise level."""
    name = str(value.name)
    if value.const_value is not None:
        return canvas.weight(name, value.const_value)
    return canvas.constant(f"{name}@{sigma}", parts.constants[sigma][name])


def append_uint8(canvas: Canvas, images: ir.Value) -> ir.Value:
    """[-1, 1] → 0 … 255, [batch, H, W, C]. Rounded and clipped first: a cast truncates, and is undefined outside."""
    half = canvas.constant("half_range", np.array(127.5, np.float32))
    scaled = canvas.add("Mul", [images, half], "scaled")
    shifted = canvas.add("Add", [scaled, half], "shifted")
    rounded = canvas.add("Round", [shifted], "rounded")
    low, high = (canvas.constant(f"pixel_{bound}", np.array(bound, np.float32)) for bound in (0, 255))
    clipped = canvas.add("Clip", [rounded, low, high], "clipped")
    rows = canvas.add("Transpose", [clipped], "rows", {"perm": ir.AttrInt64s("perm", [0, 2, 3, 1])})
    return canvas.add("Cast", [rows], "images", {"to": ir.AttrInt64("to", ir.DataType.UINT8)})
