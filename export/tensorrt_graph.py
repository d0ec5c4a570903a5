"""Undoes and adds what TensorRT's parser wants, in the graph of a bundle."""

import math

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.initializer import reshaped
from edge_sampler.export.lower import drop_unused, epsilon_of, ones_and_zeros, scales_and_shifts


def prepare_for_tensorrt(model: ir.Model, batch: int | None, group_norm: bool = True) -> None:
    """Undoes and adds what makes TensorRT's builds quick, in place; ``batch`` fixes the batch size.

    ``group_norm``: whether the release reads GroupNormalization.

    On edm-digits at NFE 10 TensorRT-RTX 1.7 takes 11.2 s with LayerNormalization as ``lower_group_norm`` leaves it,
    7.4 s with GroupNormalization, and 4.8 s with full-rank scalars and ``engine.share_norm_scales`` besides.
    """
    if batch is not None:
        fix_batch(model, batch)
    ShapeInferencePass()(model)  # does not know GroupNormalization, so that comes last
    for graph in model.graphs():
        widen_scalars(graph)
        if group_norm:
            raise_group_norm(graph)
            model.opset_imports[""] = max(model.opset_imports[""], 21)  # the first that has a scale for each channel
        drop_unused(graph)


def fix_batch(model: ir.Model, batch: int) -> None:
    """Writes the batch size where inputs and outputs, of a loop's body as well, leave it open; named axes stay so."""
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            assert value.shape is not None
            value.shape = ir.Shape([batch if str(size) == "batch" else size for size in value.shape])


def raise_group_norm(graph: ir.Graph) -> None:
    """What ``lower_group_norm`` writes → GroupNormalization, in place; whatever is not exactly that stays as it is.

    TensorRT takes it of images alone, not of the rows of positions that diffusers' attention normalizes. One group
    stays as well: TensorRT 10.16 computes it as an instance norm, silently (TensorRT issue 4756).
    """
    for node in list(graph):
        if node.op_type == "LayerNormalization" and (found := lowered_group_norm(node)):
            nodes, x, weights, groups = found
            attributes = {"num_groups": groups, "epsilon": epsilon_of(node)}
            norm = ir.node("GroupNormalization", [x, *(weights or unchanging(graph, x, node))], attributes)
            norm.outputs[0].name = f"{node.outputs[0].name}_group"
            ir.convenience.replace_nodes_and_values(graph, node, nodes, [norm], nodes[-1].outputs, norm.outputs)


def unchanging(graph: ir.Graph, x: ir.Value, norm: ir.Node) -> list[ir.Value]:
    """A scale and a bias for the channels of x that do nothing, of the type of the norm's own."""
    scale = norm.inputs[1]
    assert x.shape is not None
    assert scale is not None
    assert scale.const_value is not None
    return ones_and_zeros(graph, int(x.shape[1]), scale.const_value.numpy().dtype)  # type: ignore[arg-type]


def lowered_group_norm(node: ir.Node) -> tuple[list[ir.Node], ir.Value, list[ir.Value], int] | None:
    """The nodes around this LayerNormalization, their input, scale and bias, if any, and the number of groups.

    None unless they are a group norm of images [n, C, H, W] with two groups or more.
    """
    grouped, ones, *shift = node.inputs
    into = grouped.producer() if grouped else None
    if into is None or into.op_type != "Reshape" or shift or ones is None or ones.const_value is None:
        return None
    back = _only_reader(node, "Reshape")
    x, target, restored = into.inputs[0], into.inputs[1], back.inputs[1] if back else None
    if back is None or any(one is None or one.const_value is None for one in (target, restored)):
        return None
    shape = restored.const_value.numpy().tolist()  # type: ignore[union-attr]
    if x is None or x.shape is None or len(x.shape) != 4 or len(shape) != 4 or list(x.shape[1:]) != shape[1:]:
        return None
    channels = shape[1]
    behind, weights = _affine(back, channels)
    nodes = [into, node, back, *behind]
    _, groups, size = target.const_value.numpy().tolist() if target.const_value.size == 3 else (0, 0, 0)  # type: ignore[union-attr]
    ones_of_it = ones.const_value.numpy()
    if groups < 2 or groups * size != math.prod(shape[1:]) or channels % groups or not (ones_of_it == 1).all():
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis not in (2, -1) or ones_of_it.shape != (size,):
        return None
    return nodes, x, weights, groups


def _affine(back: ir.Node, channels: int) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes that scale and shift what a norm has made, and their weights, one for each channel; or nothing."""
    norm, product = _only_reader(back, "BatchNormalization"), _only_reader(back, "Mul")
    if norm is not None and scales_and_shifts(norm):
        return [norm], [weight for weight in norm.inputs[1:3] if weight is not None]
    total = _only_reader(product, "Add") if product else None
    if product is None or total is None:
        return [], []
    weights = []
    for weight in (product.inputs[1], total.inputs[1]):
        if weight is None or weight.const_value is None or tuple(weight.const_value.shape) != (channels, 1, 1):
            return [], []
        assert back.graph is not None
        weights.append(reshaped(back.graph, weight, (-1,)))
    return [product, total], weights


def _only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    """The one node that reads this one's output, as its first input, if it is of that type."""
    readers = node.outputs[0].consumers()
    alone = len(readers) == 1 and readers[0].op_type == op_type and readers[0].inputs[0] is node.outputs[0]
    return readers[0] if alone and not node.outputs[0].is_graph_output() else None


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
                widened = reshaped(graph, value, (1,) * len(shape))
                node.replace_input_with(index, widened)
