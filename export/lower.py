"""Rewrites of an exported graph for the engines that will read it."""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass


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
        channels, *spatial = (int(size) for size in x.shape[1:])  # type: ignore[arg-type]
        per_group = (groups, channels // groups, 1)
        grouped = ir.node("Reshape", [x, _constant(graph, [0, *per_group[:2], math.prod(spatial)])])
        normalised = ir.node(
            "LayerNormalization",
            [grouped.outputs[0], *(_reshaped(graph, weight, per_group, "by_group") for weight in (scale, bias))],
            {"axis": 2, "epsilon": epsilon},
        )
        back = ir.node("Reshape", [normalised.outputs[0], _constant(graph, [0, channels, *spatial])])
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


def _reshaped(graph: ir.Graph, weight: ir.Value | None, shape: tuple[int, ...], suffix: str) -> ir.Value:
    assert weight is not None
    assert weight.const_value is not None
    return _initializer(graph, f"{weight.name}_{suffix}", weight.const_value.numpy().reshape(shape))


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]


def prepare_for_tensorrt(model: ir.Model, batch: int | None) -> None:
    """Undoes and adds what makes TensorRT's builds quick, in place; ``batch`` fixes the batch size.

    On edm-digits at NFE 10 TensorRT-RTX 1.7 takes 11.2 s with LayerNormalization as ``lower_group_norm`` leaves it,
    7.4 s with GroupNormalization, and 4.8 s with full-rank scalars and ``engine.share_norm_scales`` besides.
    """
    if batch is not None:
        fix_batch(model, batch)
    ShapeInferencePass()(model)  # does not know GroupNormalization, so that comes last
    for graph in model.graphs():
        widen_scalars(graph)
        raise_group_norm(graph)
        drop_unused(graph)


def fix_batch(model: ir.Model, batch: int) -> None:
    """Writes the batch size where inputs and outputs, of a loop's body as well, leave it open."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            assert value.shape is not None
            value.shape = ir.Shape([size if isinstance(size, int) else batch for size in value.shape])


def raise_group_norm(graph: ir.Graph) -> None:
    """Reshape, LayerNormalization, Reshape → GroupNormalization, in place: ``lower_group_norm`` backward.

    TensorRT takes it of images alone, not of the rows of positions that diffusers' attention normalizes.
    """
    for node in list(graph):
        if node.op_type != "LayerNormalization":
            continue
        grouped, (back,) = node.inputs[0], node.outputs[0].consumers()
        assert grouped is not None
        into = grouped.producer()
        assert into is not None
        assert (into.op_type, back.op_type) == ("Reshape", "Reshape")
        target = back.inputs[1]
        assert target is not None
        assert target.const_value is not None
        if target.const_value.size != len(("batch", "channels", "height", "width")):
            continue
        scale = node.inputs[1]
        assert scale is not None
        assert scale.const_value is not None
        weights = [_reshaped(graph, weight, (-1,), "by_channel") for weight in node.inputs[1:]]
        norm = ir.node(
            "GroupNormalization",
            [into.inputs[0], *weights],
            {"num_groups": scale.const_value.numpy().shape[0], "epsilon": node.attributes["epsilon"].as_float()},
        )
        norm.outputs[0].name = f"{node.outputs[0].name}_group"
        ir.convenience.replace_nodes_and_values(graph, back, [into, node, back], [norm], back.outputs, norm.outputs)


def widen_scalars(graph: ir.Graph) -> None:
    """Gives scalar factors and terms their result's number of dimensions, in place.

    The parser would add a layer to each use.
    """
    for node in graph:
        shape = node.outputs[0].shape
        if node.op_type not in ("Mul", "Add") or shape is None:
            continue
        for index, value in enumerate(node.inputs):
            if value is not None and value.const_value is not None and value.const_value.size == 1:
                widened = _reshaped(graph, value, (1,) * len(shape), f"rank{len(shape)}")
                node.replace_input_with(index, widened)


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
