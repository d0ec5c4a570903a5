"""Writes ONNX files without a second copy of the weights in memory.

``onnx_ir.save`` builds the whole file as one message and then as one byte string: three times the weights. Here the
graph is serialized without its large weights, and they are streamed behind it, inside the same message, or into a file
beside it, which several graphs may share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from edge_sampler.runtime.protobuf import field_head
from edge_sampler.runtime.verified import weights_beside

INLINE_LIMIT = 2_000_000_000  # bytes of weights; Protocol Buffers end at 2 GiB, so more go to a file beside the graph
LARGE = 4096  # bytes; smaller tensors stay in the serialized part
ALIGNED = 4096  # bytes; where a tensor begins in a file of its own, so that readers can map it

# Field numbers of onnx/onnx.proto.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9


@dataclass(frozen=True)
class Beside:
    """A file of weights beside the graphs that share it. Each tensor is written once, when a graph first has it."""

    path: Path
    places: dict[int, tuple[ir.TensorProtocol, int]] = field(default_factory=dict)  # by id, which the tensor keeps

    def put(self, tensor: ir.TensorProtocol) -> int:
        """Where in the file it begins."""
        if id(tensor) not in self.places:
            with self.path.open("ab") as file:
                self.places[id(tensor)] = tensor, file.tell()
                file.write(tensor.tobytes())
                file.write(bytes(padded(tensor.nbytes) - tensor.nbytes))
        return self.places[id(tensor)][1]


def padded(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def save_checked(model: ir.Model, path: Path, inline_limit: int = INLINE_LIMIT, beside: Beside | None = None) -> int:
    """Runs ONNX's full check, shape inference included, and writes the file; returns the bytes of graph and weights.

    Large weights go to ``beside`` where that is given; else, above ``inline_limit`` bytes of them, to a file beside the
    graph, called as it is with ".data" added.
    """
    large = large_weights(model)
    skeleton = _without(model, large)
    _check(skeleton, large)
    if beside is None and weights_size(model) > inline_limit:
        beside = Beside(weights_beside(path)[0])
    if beside is not None:
        skeleton.graph.initializer.extend(_elsewhere(name, value, beside) for name, value in large.items())
        path.write_bytes(skeleton.SerializeToString())
        return path.stat().st_size + sum(padded(tensor.nbytes) for tensor in _distinct(large))
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


def check(model: ir.Model) -> None:
    """ONNX's full check, without a copy of the weights. Raises what ``onnx.checker`` and shape inference do."""
    large = large_weights(model)
    _check(_without(model, large), large)


def large_weights(model: ir.Model) -> dict[str, ir.Value]:
    return {
        name: value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }


def weights_size(model: ir.Model) -> int:
    """Bytes of the large weights."""
    return sum(_tensor(value).nbytes for value in large_weights(model).values())


def _distinct(values: Mapping[str, ir.Value]) -> list[ir.TensorProtocol]:
    return list({id(_tensor(value)): _tensor(value) for value in values.values()}.values())


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


def _proto(name: str, value: ir.Value) -> onnx.TensorProto:
    """A TensorProto without its data."""
    tensor = _tensor(value)
    return onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=list(tensor.shape.numpy()))


def _header(name: str, value: ir.Value) -> bytes:
    """A TensorProto up to its raw data."""
    return bytes(_proto(name, value).SerializeToString()) + field_head(TENSOR_RAW_DATA, _tensor(value).nbytes)


def _elsewhere(name: str, value: ir.Value, beside: Beside) -> onnx.TensorProto:
    """A TensorProto whose data are beside."""
    proto = _proto(name, value)
    proto.data_location = onnx.TensorProto.EXTERNAL
    told = {"location": beside.path.name, "offset": beside.put(_tensor(value)), "length": _tensor(value).nbytes}
    for key, one in told.items():
        proto.external_data.add(key=key, value=str(one))
    return proto
