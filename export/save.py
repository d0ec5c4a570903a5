"""Writes ONNX files without a second copy of the weights in memory.

``onnx_ir.save`` builds the whole file as one message and then as one byte string: three times the weights. Here the
graph is serialized without its large weights, and they are streamed behind it, inside the same message.
"""

from pathlib import Path

import onnx
import onnx_ir as ir

from edge_sampler.runtime.protobuf import field_head

INLINE_LIMIT = 2_000_000_000  # bytes of weights; Protocol Buffers end at 2 GiB, so more go to a file beside the graph
LARGE = 4096  # bytes; smaller tensors stay in the serialized part

# Field numbers of onnx/onnx.proto.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9


def save_checked(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT) -> int:
    """Runs ONNX's full check, shape inference included, and writes the file; returns the bytes written.

    Above ``inline_limit`` bytes of weights they go to a file beside it, called as the graph with ".data" added.
    """
    large = {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    skeleton = _without(model, large)
    _check(skeleton, large)
    if sum(_tensor(value).nbytes for value in large.values()) > inline_limit:
        data = path.with_name(f"{path.name}.data")
        ir.save(model, path, external_data=data.name)
        return path.stat().st_size + data.stat().st_size
    graph = skeleton.graph.SerializeToString()
    skeleton.ClearField("graph")
    headers = {name: _header(name, value) for name, value in large.items()}
    sizes = {name: len(header) + _tensor(large[name]).nbytes for name, header in headers.items()}
    total = len(graph) + sum(len(field_head(GRAPH_INITIALIZER, size)) + size for size in sizes.values())
    with path.open("wb") as file:
        file.write(skeleton.SerializeToString() + field_head(MODEL_GRAPH, total) + graph)
        for name, value in large.items():
            file.write(field_head(GRAPH_INITIALIZER, sizes[name]) + headers[name])
            file.write(_tensor(value).tobytes())
    return path.stat().st_size


def _without(model: ir.Model, large: dict[str, ir.Value]) -> onnx.ModelProto:
    for name in large:
        del model.graph.initializers[name]
    try:
        return ir.to_proto(model)
    finally:
        model.graph.initializers.update(large)


def _check(skeleton: onnx.ModelProto, large: dict[str, ir.Value]) -> None:
    """The check does not look at the weights' values, so they are declared as inputs and cost no memory."""
    declared = onnx.ModelProto()
    declared.CopyFrom(skeleton)
    for name, value in large.items():
        dims = list(_tensor(value).shape.numpy())
        declared.graph.input.append(onnx.helper.make_tensor_value_info(name, _tensor(value).dtype.value, dims))
    onnx.checker.check_model(declared, full_check=True)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    assert value.const_value is not None
    return value.const_value


def _header(name: str, value: ir.Value) -> bytes:
    """A TensorProto up to its raw data."""
    tensor = _tensor(value)
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=list(tensor.shape.numpy()))
    return bytes(proto.SerializeToString()) + field_head(TENSOR_RAW_DATA, tensor.nbytes)
