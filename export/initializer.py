"""The weights of a graph, by name."""

import numpy as np
import onnx_ir as ir


def initializer(graph: ir.Graph, name: str, values: np.ndarray | ir.TensorProtocol) -> ir.Value:
    """The graph's initializer of that name, made of ``values`` when it is new; another name, where it holds another."""
    tensor = ir.tensor(values) if isinstance(values, np.ndarray) else values
    while name in graph.initializers and not equal(graph.initializers[name].const_value, tensor):
        name += "_"
    if name not in graph.initializers:
        tensor.name = name
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]


def equal(one: ir.TensorProtocol | None, other: ir.TensorProtocol) -> bool:
    """Whether two tensors hold the same."""
    if one is None or one is other:
        return one is other
    alike = one.dtype == other.dtype and tuple(one.shape) == tuple(other.shape)
    return alike and one.tobytes() == other.tobytes()


def reshaped(graph: ir.Graph, weight: ir.Value | None, shape: tuple[int, ...]) -> ir.Value:
    """The weight in that shape; its name has the shape in it, since one weight may be needed in several."""
    assert weight is not None
    assert weight.const_value is not None
    return initializer(
        graph, f"{weight.name}_as_{'x'.join(map(str, shape))}", weight.const_value.numpy().reshape(shape)
    )
