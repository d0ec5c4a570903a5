"""Eight bits, written into the sampler's graph as QuantizeLinear and DequantizeLinear: what the nodes say is what every
engine computes (ONNX's QDQ format; TensorRT calls it explicit quantisation).

Each evaluation has nodes of its own, so each has scales of its own for what it computes. A weight is in the file once,
with a scale for each output channel, behind one DequantizeLinear that all evaluations read. Zero points are 0, as
TensorRT asks.

Quantised are convolutions and matrix products with constant weights, of what depends on the state. The first and the
last of a network are not, nor what feeds them alone: embeddings, whatever a call computes once, stages around the loop.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.initializer import initializer
from edge_sampler.export.lower import lower_opset
from edge_sampler.export.precision import around_network, lower_precision
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.precisions.base import Quantised
from edge_sampler.runtime.errors import UserError

OPSET = 20  # from 21 on ONNX Runtime (1.32) moves QuantizeLinear past a Reshape, and then refuses it
LEAST_SCALE = 2.0**-24  # of float16; of values below 8e-6
BIAS = 2.0**30  # a bias is at most so many times the product of both scales, half of what an int32 holds
SHRUNK = np.linspace(0.6, 1, 21)  # parts of a channel's largest weight that are tried as its largest number


@dataclass(frozen=True)
class Layer:
    """The product with one weight, in every evaluation.

    Args:
        weight: its initializer.
        axis: of the weight, which counts the output channels.
        nodes: Conv, Gemm or MatMul, in the order of evaluations.
    """

    weight: ir.Value
    axis: int
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        return str(self.weight.name)


def layers_of(graph: ir.Graph) -> list[Layer]:
    """The layers of a float32 sampler's graph that can be quantised.

    Raises UserError where it is quantised already, and where there are none.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph):
        raise UserError("the bundle's sampler.onnx is quantised already: export it again in fp32")
    around = around_network(graph)
    moving = {value for value in graph.inputs if value.name == "noise"}  # and what depends on it
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        if not moving.isdisjoint(node.inputs):
            moving.update(node.outputs)
            x, weight = (*node.inputs, None)[:2]
            inner = x in moving and x.producer() not in around and around.isdisjoint(node.outputs[0].consumers())
            stamped = evaluation_of(node.outputs[0].name) is not None
            if stamped and inner and weight is not None and _axis(node) is not None:
                found.setdefault(weight, []).append(node)
    if not found:
        raise UserError("the network has no layers between its first and its last one that 8 bits are for: take fp16")
    return [Layer(weight, _axis(nodes[0]) or 0, tuple(nodes)) for weight, nodes in found.items()]


def evaluation_of(name: str | None) -> int | None:
    """Which evaluation a value belongs to, by the name that ``unroll`` gives it; None: to no single one."""
    number = str(name).rpartition("@")[2]
    return int(number) if number.isdigit() else None


def _axis(node: ir.Node) -> int | None:
    """Which axis of the weight counts output channels; None where the node is no product to quantise.

    Depthwise convolutions (resampling) stay: they have next to no weights, and nothing to gain. So do products that a
    network computes in 16 bits by itself.
    """
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if weight is None or not weight.is_initializer() or weight.shape is None or weight.dtype != ir.DataType.FLOAT:
        return None
    if node.op_type == "Conv" and not (node.attributes.get_int("group", 1) > 1 and weight.shape[1] == 1):
        return 0
    if node.op_type in ("Gemm", "MatMul") and len(weight.shape) == 2:
        return 0 if node.attributes.get_int("transB", 0) else 1
    return None


def operands(layer: Layer, precision: Quantised) -> list[ir.Value]:
    """The values of a layer that get scales, those of all evaluations."""
    values = [value for node in layer.nodes for value in node.inputs[:1] if value is not None]
    results = precision.results and layer.nodes[0].op_type == "Conv"
    return values + [node.outputs[0] for node in layer.nodes if results]


def quantise(model: ir.Model, precision: str, largest: Mapping[str, float], kept: Collection[str] = ()) -> None:
    """The sampler's graph in one of ``QUANTISED``, in place.

    Args:
        largest: of each value that ``operands`` tells, by name, the magnitude that the largest number is to stand for.
        kept: names of layers that stay as they are.

    Raises UserError as ``layers_of`` does, and where a weight is not finite.
    """
    ShapeInferencePass()(model)
    for layer in layers_of(model.graph):
        if layer.name not in kept:
            quantise_layer(model.graph, layer, QUANTISED[precision], largest)
    if QUANTISED[precision].rest != "fp32":
        lower_precision(model, QUANTISED[precision].rest)
    lower_opset(model, OPSET)


def switched(model: ir.Model, precision: str, largest: Mapping[str, float]) -> dict[str, str]:
    """Gives a float32 sampler's graph an input for each layer, in place: true puts that layer into eight bits.

    Returns the inputs' names by those of the layers.
    """
    ShapeInferencePass()(model)
    switches = {}
    for number, layer in enumerate(layers_of(model.graph)):
        switch = ir.Value(name=f"switch_{number}", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
        model.graph.inputs.append(switch)
        quantise_layer(model.graph, layer, QUANTISED[precision], largest, switch)
        switches[layer.name] = str(switch.name)
    lower_opset(model, OPSET)
    return switches


def quantise_layer(
    graph: ir.Graph, layer: Layer, eight: Quantised, largest: Mapping[str, float], switch: ir.Value | None = None
) -> None:
    """One layer, in place; with a ``switch`` where that is true.

    What is not in ``largest`` is rounded already: a result that the next layer takes as it is.
    """
    results = operands(layer, eight)[len(layer.nodes) :]
    for node in layer.nodes:
        x = node.inputs[0]
        assert x is not None
        if x.name in largest:
            node.replace_input_with(0, _either(graph, switch, _through_eight_bits(graph, x, eight, largest), x))
    weight = _either(graph, switch, _weight(graph, layer, eight), layer.weight)
    for node in layer.nodes:
        node.replace_input_with(1, weight)
    for value in results:
        readers = [(reader, index) for reader, index in value.uses() if reader.op_type != "QuantizeLinear"]
        rounded_value = _either(graph, switch, _through_eight_bits(graph, value, eight, largest), value)
        for reader, index in readers:
            reader.replace_input_with(index, rounded_value)


def _either(graph: ir.Graph, switch: ir.Value | None, rounded_value: ir.Value, value: ir.Value) -> ir.Value:
    """The first value where there is no switch, else the one that it says."""
    producer = rounded_value.producer()
    if switch is None or producer is None:
        return rounded_value
    node = ir.node("Where", [switch, rounded_value, value])
    name_result(node, f"{value.name}_by_{switch.name}", value.shape, ir.DataType.FLOAT)
    graph.insert_after(producer, node)
    return node.outputs[0]


def _through_eight_bits(graph: ir.Graph, value: ir.Value, eight: Quantised, largest: Mapping[str, float]) -> ir.Value:
    """The value, rounded: two nodes behind the one that makes it, the same for all its readers."""
    scale = initializer(graph, f"{value.name}_scale", scale_of(largest[str(value.name)], eight))
    for reader in value.consumers():
        if reader.op_type == "QuantizeLinear":
            return reader.outputs[0].consumers()[0].outputs[0]
    zero = initializer(graph, f"zero_{eight.dtype.name.lower()}", np.zeros((), eight.dtype.numpy()))
    quantised = ir.node("QuantizeLinear", [value, scale, zero])
    restored = ir.node("DequantizeLinear", [quantised.outputs[0], scale, zero])
    name_result(quantised, f"{value.name}_quantised", value.shape, eight.dtype)
    name_result(restored, f"{value.name}_restored", value.shape, ir.DataType.FLOAT)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [quantised, restored])
    return restored.outputs[0]


def scale_of(largest: float, eight: Quantised) -> np.ndarray:
    """float32 []: what the largest number times it is to stand for is ``largest``."""
    return np.array(max(largest / eight.largest, LEAST_SCALE), np.float32)


def _weight(graph: ir.Graph, layer: Layer, eight: Quantised) -> ir.Value:
    """The layer's weight of eight bits, restored by one node for all evaluations."""
    assert layer.weight.const_value is not None
    array = layer.weight.const_value.numpy().astype(np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{layer.name} holds NaN or infinity: its model is unusable")
    numbers, scales = rounded(array, layer.axis, eight, least_scales(layer, array.shape[layer.axis]))
    stored = initializer(graph, f"{layer.name}_{eight.dtype.name.lower()}", numbers)
    scale = initializer(graph, f"{layer.name}_scale", scales)
    zero = initializer(graph, f"zero_{eight.dtype.name.lower()}_{len(scales)}", np.zeros(len(scales), numbers.dtype))
    node = ir.node("DequantizeLinear", [stored, scale, zero], {"axis": layer.axis})
    name_result(node, f"{layer.name}_restored", layer.weight.shape, ir.DataType.FLOAT)
    graph.insert_before(graph[0], node)
    return node.outputs[0]


def least_scales(layer: Layer, channels: int) -> np.ndarray:
    """Of a weight whose products are rounded already, float32 [channels]: with less, a bias is beyond 32 bits.

    Engines add the bias as a whole number of the product of both scales.
    """
    least = np.full(channels, LEAST_SCALE, np.float32)
    for node in layer.nodes:
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None and bias.const_value is not None:
            least = np.maximum(least, np.abs(bias.const_value.numpy()) / (BIAS * _rounded_by(node.inputs[0])))
    return least


def _rounded_by(x: ir.Value | None) -> np.ndarray:
    """The scale float32 [] of a value that is restored from eight bits, with a switch or without."""
    node = x.producer() if x is not None else None
    if node is not None and node.op_type == "Where":
        node = node.inputs[1].producer() if node.inputs[1] is not None else None
    scale = node.inputs[1] if node is not None else None
    assert scale is not None
    assert scale.const_value is not None
    return scale.const_value.numpy()


def rounded(
    weight: np.ndarray, axis: int, eight: Quantised, least: np.ndarray | float = LEAST_SCALE
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of eight bits, shaped as the weight, and scales float32 [weight.shape[axis]], whose product it nearly is.

    Each channel's scale is the one of ``SHRUNK`` that has the least squared error; of floats, the largest. None is
    below that channel's ``least``.
    """
    others = tuple(k for k in range(weight.ndim) if k != axis)
    top = np.abs(weight).max(others, keepdims=True)
    best, error_of_best = np.ones_like(top), np.full(top.shape, np.inf)
    least = np.expand_dims(np.broadcast_to(least, weight.shape[axis]), others)
    for part in SHRUNK if eight.dtype.is_integer() else (1.0,):
        scale = np.maximum(part * top / eight.largest, least).astype(np.float32)
        error = np.square(weight - scale * to_eight_bits(weight / scale, eight).astype(np.float32)).sum(
            others, keepdims=True
        )
        best, error_of_best = np.where(error < error_of_best, scale, best), np.minimum(error, error_of_best)
    return to_eight_bits(weight / best, eight), best.reshape(-1)


def to_eight_bits(values: np.ndarray, eight: Quantised) -> np.ndarray:
    """The nearest numbers of that type, as QuantizeLinear takes them: halves to even, what is beyond to the largest."""
    within = np.clip(values, -eight.largest, eight.largest)
    return (np.rint(within) if eight.dtype.is_integer() else within).astype(eight.dtype.numpy())


def name_result(node: ir.Node, name: str, shape: ir.Shape | None, dtype: ir.DataType) -> None:
    node.name, made = name, node.outputs[0]
    made.name, made.shape, made.type = name, shape, ir.TensorType(dtype)
