"""The sampler's graph while it is drawn: its inputs, nodes in order, weights by name, and outputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from edge_sampler.export.initializer import equal
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import FLOAT_IMAGES, is_taken

OUTPUTS = ("float32", "uint8")
SAMPLE = "sample"  # what the last state is called where a decoder follows

Values = dict[ir.Value | None, ir.Value]  # of an exported graph → of the one that is drawn


class Canvas:
    """The graph being drawn. ``inputs`` are what its nodes may read by name, constants and weights come by value."""

    def __init__(self, inputs: Sequence[ir.Value]) -> None:
        self.inputs = {str(value.name): value for value in inputs}
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """The initializer of that name, made when it is new."""
        return self.weight(name, ir.tensor(array))

    def weight(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """The same; another name, where a network has a weight of it, or where it is to be a state's."""
        while is_taken(name) or (name in self.weights and not equal(self.weights[name].const_value, tensor)):
            name += "_"
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

    def copy(
        self,
        nodes: Iterable[ir.Node],
        values: Values,
        bring: Callable[[ir.Value], ir.Value],
        rename: Callable[[ir.Value], str],
    ) -> None:
        """Copies of the nodes; ``values`` grow by their outputs. ``bring`` makes what is not among them yet."""
        for node in nodes:
            for value in node.inputs:
                if value is not None and value not in values:
                    values[value] = bring(value)
            outputs = [ir.Value(name=rename(value)) for value in node.outputs]
            inputs = [None if value is None else values[value] for value in node.inputs]
            attributes = node.attributes.values()
            self.nodes.append(
                ir.Node(node.domain, node.op_type, inputs, attributes, outputs=outputs, name=outputs[0].name)
            )
            values.update(zip(node.outputs, outputs, strict=True))


@dataclass(frozen=True)
class Ends:
    """What stands around the loop, and what comes out.

    Args:
        encoder, decoder: of ``export_encoder`` and ``export_decoder``, or None.
        output: "float32", or "uint8" for pictures [batch, H, W, C] of the range [-1, 1].
        name: what the graph's output is called.
    """

    encoder: ir.Model | None = None
    decoder: ir.Model | None = None
    output: str = "float32"
    name: str = "images"

    @property
    def float_name(self) -> str:
        """What the last float value is called."""
        return self.name if self.output == "float32" else FLOAT_IMAGES

    @property
    def state_name(self) -> str:
        """What the last state is called."""
        return self.float_name if self.decoder is None else SAMPLE

    def open(self, graph: ir.Graph) -> Canvas:
        """A canvas with the sampler's inputs: noise, like the denoiser's x, and its conditions.

        With an encoder its inputs come in place of the conditions that it makes, and its nodes make those.
        """
        encoder = None if self.encoder is None else self.encoder.graph
        made = {str(value.name) for value in encoder.outputs} if encoder else set()
        (x,) = (value for value in graph.inputs if value.name == "x")
        kept = [value for value in graph.inputs if value.name not in ("x", "sigma", *made)]
        given = [like(value) for value in (*(encoder.inputs if encoder else ()), *kept)]
        canvas = Canvas([like(x, "noise"), *given])
        if encoder:
            made_values = draw_stage(canvas, encoder, "encoder", [canvas.inputs[str(v.name)] for v in encoder.inputs])
            canvas.inputs.update(zip((str(value.name) for value in encoder.outputs), made_values, strict=True))
        return canvas

    def close(self, exported: ir.Model, canvas: Canvas, state: ir.Value) -> ir.Model:
        """The sampler that was drawn, with what follows its last state, which is called ``state_name``."""
        noise = canvas.inputs["noise"]
        shape, result = noise.shape, state
        assert shape is not None
        if self.decoder is not None:
            state.shape, state.type = shape, noise.type
            (result,) = draw_stage(canvas, self.decoder.graph, "decoder", [state], [self.float_name])
            decoded = self.decoder.graph.outputs[0].shape
            assert decoded is not None
            shape = decoded
        if self.output == "uint8":
            if len(shape) != 4:
                raise UserError(f"uint8 is for pictures [batch, C, H, W], and the output is {shape}: ask for float32")
            result.shape, result.type = shape, ir.TensorType(ir.DataType.FLOAT)
            result = append_uint8(canvas, result, self.name)
            shape = ir.Shape([shape[0], shape[2], shape[3], shape[1]])
        dtype = ir.DataType.FLOAT if self.output == "float32" else ir.DataType.UINT8
        result.shape, result.type = shape, ir.TensorType(dtype)
        inputs = [value for value in canvas.inputs.values() if value.producer() is None]
        graph = ir.Graph(
            inputs,
            [result],
            nodes=canvas.nodes,
            initializers=list(canvas.weights.values()),
            opset_imports=dict(exported.graph.opset_imports),
            name="sampler",
        )
        model = ir.Model(graph, ir_version=exported.ir_version, producer_name=exported.producer_name)
        NameFixPass()(model)  # a condition, or the output, may be called as a value inside
        return model


def draw_mean(canvas: Canvas, exported: ir.Model, mean: np.ndarray, column: np.ndarray | None = None) -> ir.Value:
    """A plan's mean [1, *shape]; where it has one for each label, [batch, *shape], by ``exported``'s one condition.

    Times a ``column`` [columns, 1, …] it has one more axis, the first. A label below 0 is that of the last mean:
    engines need not count from the end.
    """
    noise = canvas.inputs["noise"].shape
    assert noise is not None
    means = mean.reshape(-1, *mean.shape[mean.ndim + 1 - len(noise) :])
    axis = 0
    if column is not None:
        means, axis = column * means, 1
    if mean.ndim < len(noise):
        return canvas.constant("afs_mean", means)
    (name,) = {str(value.name) for value in exported.graph.inputs} - {"x", "sigma"}
    nothing, last = (canvas.constant(f"afs_{k}", np.array(k)) for k in (0, len(mean) - 1))
    none = canvas.add("Greater", [nothing, canvas.inputs[name]], "afs_no_label")
    row = canvas.add("Where", [none, last, canvas.inputs[name]], "afs_row")
    along = {"axis": ir.AttrInt64("axis", axis)}
    return canvas.add("Gather", [canvas.constant("afs_means", means), row], "afs_mean", along)


def like(value: ir.Value, name: str | None = None) -> ir.Value:
    return ir.Value(name=name or value.name, shape=value.shape, type=value.type)


def draw_stage(
    canvas: Canvas, graph: ir.Graph, stage: str, given: Sequence[ir.Value], names: Sequence[str] = ()
) -> list[ir.Value]:
    """The nodes of an encoder or a decoder, reading ``given``; returns its outputs, called ``names`` if told."""
    called = dict(zip(graph.outputs, names, strict=False))
    values: Values = dict(zip(graph.inputs, given, strict=True))

    def bring(value: ir.Value) -> ir.Value:
        assert value.const_value is not None
        return canvas.weight(f"{stage}.{value.name}", value.const_value)

    canvas.copy(graph, values, bring, lambda value: called.get(value, f"{value.name}@{stage}"))
    outputs = [values[value] if value in values else bring(value) for value in graph.outputs]
    for value, made in zip(graph.outputs, outputs, strict=True):
        if made.producer() is not None:
            made.shape, made.type = value.shape, value.type
    return outputs


def append_uint8(canvas: Canvas, images: ir.Value, name: str) -> ir.Value:
    """[-1, 1] → 0 … 255, [batch, H, W, C]. Rounded and clipped first: a cast truncates, and is undefined outside."""
    half = canvas.constant("half_range", np.array(127.5, np.float32))
    scaled = canvas.add("Mul", [images, half], "scaled")
    shifted = canvas.add("Add", [scaled, half], "shifted")
    rounded = canvas.add("Round", [shifted], "rounded")
    low, high = (canvas.constant(f"pixel_{bound}", np.array(bound, np.float32)) for bound in (0, 255))
    clipped = canvas.add("Clip", [rounded, low, high], "clipped")
    rows = canvas.add("Transpose", [clipped], "rows", {"perm": ir.AttrInt64s("perm", [0, 2, 3, 1])})
    return canvas.add("Cast", [rows], name, {"to": ir.AttrInt64("to", ir.DataType.UINT8)})
