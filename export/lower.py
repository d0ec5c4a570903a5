"""Rewrites of an exported graph for the engines that will read it."""

import numpy as np
import onnx_ir as ir


def lower_group_norm(model: ir.Model) -> None:
    """GroupNormalization → Reshape, LayerNormalization, Reshape, in place.

    ONNX Runtime has no kernel for GroupNormalization, neither on CPUs nor with CUDA: it expands each into some forty
    nodes, a quarter of a small network's time. TensorRT has one, and should get the graph without this.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        x, scale, bias = node.inputs
        assert x is not None
        assert x.shape is not None
        groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes["epsilon"].as_float()
        channels, height, width = (size for size in x.shape if isinstance(size, int))  # all but the batch
        per_group = (groups, channels // groups, 1)
        grouped = ir.node("Reshape", [x, _constant(graph, [0, *per_group[:2], height * width])])
        normalised = ir.node(
            "LayerNormalization",
            [grouped.outputs[0], _reshaped(graph, scale, per_group), _reshaped(graph, bias, per_group)],
            {"axis": 2, "epsilon": epsilon},
        )
        back = ir.node("Reshape", [normalised.outputs[0], _constant(graph, [0, channels, height, width])])
        for step, suffix in ((grouped, "grouped"), (normalised, "normalised"), (back, "norm")):
            step.outputs[0].name = f"{node.outputs[0].name}_{suffix}"
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], [grouped, normalised, back], node.outputs, back.outputs
        )


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


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """The initializer that holds these int64 numbers."""
    return _initializer(graph, "shape_" + "_".join(map(str, numbers)), np.array(numbers, np.int64))


def _reshaped(graph: ir.Graph, weight: ir.Value | None, shape: tuple[int, ...]) -> ir.Value:
    assert weight is not None
    assert weight.const_value is not None
    return _initializer(graph, f"{weight.name}_by_group", weight.const_value.numpy().reshape(shape))


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def drop_unused(model: ir.Model) -> None:
    """Removes weights that no node reads any more, and the shapes of intermediate values.

    Readers infer those; written out they cost more bytes than the nodes.
    """
    for name, value in list(model.graph.initializers.items()):
        if not value.uses():
            del model.graph.initializers[name]
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = value.type = None
