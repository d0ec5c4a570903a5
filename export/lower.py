"""Rewrites an exported graph for those who will read it, ONNX Runtime above all."""

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edge_sampler.export.initializer import initializer, reshaped

UNIT_EPSILON = 2.0**-16  # of a variance of 1, exactly, and no less than cuDNN takes

SINGLE_ONLY = ("Conv", "ConvTranspose", "GroupNormalization", "InstanceNormalization")  # ONNX Runtime has no double


def lower_group_norm(model: ir.Model) -> None:
    """GroupNormalization → Reshape, LayerNormalization, Reshape, BatchNormalization, in place.

    ONNX Runtime has no kernel for GroupNormalization, neither on CPUs nor with CUDA: it expands each into some forty
    nodes, a quarter of a small network's time. TensorRT has one, and should get the graph without this.

    LayerNormalization has a scale of ones, as large as what it normalises. A scale that is broadcast over it, which
    ONNX allows, saves the last node, but ONNX Runtime below 1.24 refuses it, on CPUs its slow path runs it, and
    its CUDA kernel (1.31 at least) computes something else and says nothing: images were off by 0.5.

    BatchNormalization, of mean 0 and variance 1, is each channel's scale and bias: as Mul and Add, to the bit, but one
    pass over the images less.

    Where a call chooses a size, no scale can be as large: there it is InstanceNormalization, of groups for channels.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        x, *weights = node.inputs
        assert x is not None
        assert x.shape is not None
        groups, epsilon = node.attributes["num_groups"].as_int(), epsilon_of(node)
        channels, *spatial = (size if isinstance(size, int) else -1 for size in x.shape[1:])
        size = channels // groups * math.prod(spatial)
        if -1 in spatial:
            grouped = ir.node("Reshape", [x, _constant(graph, [0, groups, -1])])
            same = ones_and_zeros(graph, groups)
            normalised = ir.node("InstanceNormalization", [grouped.outputs[0], *same], {"epsilon": epsilon})
        else:
            grouped = ir.node("Reshape", [x, _constant(graph, [0, groups, size])])
            ones = _filled(graph, "ones", size, 1)
            normalised = ir.node("LayerNormalization", [grouped.outputs[0], ones], {"axis": 2, "epsilon": epsilon})
        steps = {"sizes": ir.node("Shape", [x])} if spatial.count(-1) > 1 else {}
        target = steps["sizes"].outputs[0] if steps else _constant(graph, [0, channels, *spatial])
        back = ir.node("Reshape", [normalised.outputs[0], target])
        unit = [_filled(graph, "zeros", channels, 0), _filled(graph, "variance_1", channels, 1 - UNIT_EPSILON)]
        per_channel = [_for_channels(graph, weight, channels) for weight in weights]
        affine = ir.node("BatchNormalization", [back.outputs[0], *per_channel, *unit], {"epsilon": UNIT_EPSILON})
        steps |= {"grouped": grouped, "normalised": normalised, "back": back, "norm": affine}
        for suffix, step in steps.items():
            step.outputs[0].name = f"{node.outputs[0].name}_{suffix}"
        ir.convenience.replace_nodes_and_values(graph, node, [node], list(steps.values()), node.outputs, affine.outputs)


def transpose_keys_at_once(model: ir.Model) -> None:
    """Reshape to three dimensions, Transpose, Reshape back → one Transpose, in place.

    PyTorch writes an attention's Kᵀ so, with eight nodes of arithmetic on shapes where the batch is open.
    """
    found = False
    for node in list(model.graph):
        perm = node.attributes.get("perm")  # without it all axes are turned round
        if node.op_type != "Transpose" or perm is None or list(perm.as_ints()) != [0, 2, 1]:
            continue
        flat, readers = node.inputs[0], node.outputs[0].consumers()
        into = flat.producer() if flat is not None else None
        if into is None or into.op_type != "Reshape" or [reader.op_type for reader in readers] != ["Reshape"]:
            continue
        keys, back = into.inputs[0], readers[0].outputs[0]
        if keys is None or keys.shape is None or len(keys.shape) != 4:
            continue
        n, heads, rows, columns = sizes = [s if isinstance(s, int) else 1009 + i for i, s in enumerate(keys.shape)]
        flattened, restored = (_computed_sizes(one.inputs[1], keys, sizes) for one in (into, readers[0]))
        if flattened in ([-1, rows, columns], [n * heads, rows, columns]) and restored == [n, heads, columns, rows]:
            once = ir.node("Transpose", [keys], {"perm": [0, 1, 3, 2]})
            once.outputs[0].name = f"{back.name}_at_once"
            ir.convenience.replace_nodes_and_values(
                model.graph, readers[0], [node, readers[0]], [once], [back], once.outputs
            )
            found = True
    if found:
        RemoveUnusedNodesPass()(model)


def _computed_sizes(value: ir.Value | None, of: ir.Value, sizes: list[int]) -> list[int]:
    """What arithmetic on the shape of ``of`` comes to, were that ``sizes``; nothing where it is another's."""
    if value is None or value is of:
        return []
    if value.const_value is not None:
        return [int(number) for number in value.const_value.numpy().reshape(-1)]
    node = value.producer()
    if node is not None and node.op_type == "Shape" and node.inputs[0] is of:
        ends = [node.attributes[name].as_int() if name in node.attributes else None for name in ("start", "end")]
        return sizes[slice(*ends)]
    if node is not None and node.op_type == "Slice" and len(node.inputs) <= 4:
        data, start, end = (_computed_sizes(one, of, sizes) for one in node.inputs[:3])
        return data[start[0] : end[0]] if start and end else []
    if node is not None and node.op_type == "Concat":
        return [size for one in node.inputs for size in _computed_sizes(one, of, sizes)]
    return []


def compute_in_single_precision(graph: ir.Graph) -> None:
    """float64 → float32, in place, but in what the noise level alone decides: ONNX Runtime has no such convolutions.

    What is computed of the noise level, once, at export, stays as exact as the network has it up to the first of these.
    """
    varying = {value for value in graph.inputs if value.name != "sigma"}
    for node in list(graph):
        if node.op_type not in SINGLE_ONLY and not any(value in varying for value in node.inputs):
            continue
        varying.update(node.outputs)
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.DOUBLE:
                continue
            if value.const_value is not None and value.is_initializer():
                single = initializer(graph, f"{value.name}_single", value.const_value.numpy().astype(np.float32))
                node.replace_input_with(index, single)
            elif value not in varying:
                cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT.value})
                cast.outputs[0].name, cast.outputs[0].shape = f"{value.name}_single_{node.outputs[0].name}", value.shape
                cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
        if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.DOUBLE.value:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT.value)
    for value in varying:
        if value.dtype == ir.DataType.DOUBLE:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(graph):
        source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type == "Cast" and source in varying and source.dtype == made.dtype and not made.is_graph_output():
            ir.convenience.replace_all_uses_with(made, source)
            graph.remove(node, safe=True)


def keep_batch_in_reshapes(model: ir.Model) -> None:
    """Reshape to [-1, …] → Reshape to [0, …], in place, where the first dimension is the batch before and after.

    Readers then know that it still is the batch, and fuse what they would otherwise not: ONNX Runtime the additions of
    residual branches into convolutions.
    """
    for node in model.graph:
        if node.op_type != "Reshape":
            continue
        x, target = node.inputs
        assert x is not None
        assert target is not None
        before, after = x.shape, node.outputs[0].shape
        if target.const_value is None or not before or not after or before[0] != after[0]:
            continue
        sizes = target.const_value.numpy().tolist()
        if sizes[0] == -1:
            node.replace_input_with(1, _constant(model.graph, [0, *sizes[1:]]))
            node.attributes.pop("allowzero", None)  # set by the exporter; here 0 is to mean "as before"


def _for_channels(graph: ir.Graph, weight: ir.Value | None, channels: int) -> ir.Value:
    """One number for each channel; opsets before 21 have one for each group."""
    assert weight is not None
    if weight.const_value is None or weight.const_value.size == channels:
        return weight
    numbers = weight.const_value.numpy()
    return initializer(graph, f"{weight.name}_of_{channels}", np.repeat(numbers, channels // len(numbers)))


def _filled(graph: ir.Graph, name: str, size: int, number: float, dtype: np.dtype[Any] | type = np.float32) -> ir.Value:
    return initializer(graph, f"{name}_{size}", np.full(size, number, dtype))


def ones_and_zeros(graph: ir.Graph, size: int, dtype: np.dtype[Any] | type = np.float32) -> list[ir.Value]:
    """A scale and a bias that change nothing."""
    return [_filled(graph, "ones", size, 1, dtype), _filled(graph, "zeros", size, 0, dtype)]


def lower_opset(model: ir.Model, opset: int) -> None:
    """Declares an earlier opset, in place, for a graph of operators that the two have in common.

    Between 20 and 21 only GroupNormalization came to mean something else; the others took more types. ``save_checked``
    finds an operator or an attribute that the earlier opset does not have.
    """
    assert not any(node.op_type == "GroupNormalization" for graph in model.graphs() for node in graph)
    model.opset_imports[""] = min(model.opset_imports[""], opset)


def scales_and_shifts(norm: ir.Node) -> bool:
    """Whether this is a BatchNormalization that does nothing else, by weights that stay."""
    if norm.op_type != "BatchNormalization" or len(norm.outputs) > 1:
        return False
    if any(value is None or value.const_value is None for value in norm.inputs[1:]):
        return False
    mean, variance = (value.const_value.numpy().astype(float) for value in norm.inputs[3:])  # type: ignore[union-attr]
    return not mean.any() and bool((abs(variance + epsilon_of(norm) - 1) < 2 * UNIT_EPSILON).all())


def multiply_and_add(graph: ir.Graph) -> None:
    """BatchNormalization that only scales and shifts → Mul and Add, in place, for who has none of a type."""
    for node in list(graph):
        x, made = node.inputs[0] if node.inputs else None, node.outputs[0]
        if not scales_and_shifts(node) or x is None or made.shape is None:
            continue
        scale, shift = (reshaped(graph, weight, (-1, *[1] * (len(made.shape) - 2))) for weight in node.inputs[1:3])
        product = ir.node("Mul", [x, scale])
        total = ir.node("Add", [product.outputs[0], shift])
        for suffix, one in (("scaled", product), ("shifted", total)):
            one.outputs[0].name = f"{made.name}_{suffix}"
            one.outputs[0].shape, one.outputs[0].type = made.shape, made.type
        ir.convenience.replace_nodes_and_values(graph, node, [node], [product, total], [made], total.outputs)


def epsilon_of(norm: ir.Node) -> float:
    return norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5  # as ONNX has it


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """The initializer that holds these int64 numbers."""
    return initializer(graph, "shape_" + "_".join(map(str, numbers)), np.array(numbers, np.int64))


def drop_unused(graph: ir.Graph) -> None:
    """Removes weights that no node reads any more, and the shapes of intermediate values.

    Readers infer those; written out they cost more bytes than the nodes.
    """
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
