"""Takes the scales of evaluations out of their products, for TensorRT."""

import numpy as np
import onnx_ir as ir

from edge_sampler.export.initializer import initializer
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.quantise import name_result


def lift_scales(model: ir.Model) -> None:
    """Takes each evaluation's scales out of its products, in place: product(x) = s · product(x / s), and the rounding
    is of x / s. Results are rounded no more, as TensorRT does not ask for it.

    TensorRT-RTX writes the scale of a QuantizeLinear into the kernels' source. So evaluations with scales of their own
    would have kernels of their own: edm-digits at NFE 10 has 80 MB of them, and 12 MB with the scales as weights.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "QuantizeLinear":
            continue
        x, scale, restored = node.inputs[0], node.inputs[1], node.outputs[0].consumers()[0]
        assert x is not None
        assert scale is not None
        assert scale.const_value is not None
        users = [user for user in restored.outputs[0].consumers() if _restored_weight(user)]
        if not users:  # a result
            ir.convenience.replace_all_uses_with(restored.outputs[0], x)
            graph.remove([restored, node], safe=True)
            continue
        number, one = scale.const_value.numpy(), np.ones((), scale.const_value.numpy().dtype)
        for which in (node, restored):
            which.replace_input_with(1, initializer(graph, f"scale_one_{one.dtype}", one))
        node.replace_input_with(0, _times(graph, x, 1 / number, _channels(users[0], 1)))
        for user in users:
            made = user.outputs[0]
            readers = list(made.uses())
            for index, bias in enumerate(user.inputs[2:], 2):
                if bias is not None and bias.const_value is not None:
                    less = (bias.const_value.numpy() / number).astype(number.dtype)
                    user.replace_input_with(index, initializer(graph, f"{bias.name}_for_{x.name}", less))
            for reader, index in readers:
                reader.replace_input_with(index, _times(graph, made, number, _channels(user, 0)))
    drop_unused(graph)


def _restored_weight(node: ir.Node) -> ir.Node | None:
    """The node that restores the weight of eight bits that this one multiplies by."""
    weight = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
    producer = weight.producer() if weight is not None else None
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _channels(node: ir.Node, which: int) -> tuple[int, ...]:
    """A shape that counts a product's channels, of its results (0) or its operand (1), to be broadcast over those."""
    restored = _restored_weight(node)
    assert restored is not None
    weight = restored.inputs[0]
    assert weight is not None
    assert weight.const_value is not None
    sizes = list(weight.const_value.shape.numpy())
    if node.op_type == "Conv":
        return (sizes[0] if which == 0 else sizes[1] * node.attributes.get_int("group", 1), *(1 for _ in sizes[2:]))
    return (sizes[which if node.attributes.get_int("transB", 0) else 1 - which],)


def _times(graph: ir.Graph, value: ir.Value, number: np.ndarray, shape: tuple[int, ...]) -> ir.Value:
    """The value times a number that is stored as a weight; the node is drawn once, behind the one of the value."""
    name = f"{value.name}_times"
    for reader in value.consumers():
        if reader.outputs[0].name == name:
            return reader.outputs[0]
    factor = initializer(graph, f"{name}_factor", np.full(shape, number, number.dtype))
    node = ir.node("Mul", [value, factor])
    name_result(node, name, value.shape, ir.DataType.from_numpy(number.dtype))
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return node.outputs[0]
