"""Rewrites an exported graph for the engines that will read it."""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from edge_sampler.export.initializer import initializer

UNIT = (("ones", 1), ("zeros", 0))  # a scale and a bias that change nothing


def lower_group_norm(model: ir.Model) -> None:
    """GroupNormalization → Reshape, LayerNormalization, Reshape, Mul, Add, in place.

    ONNX Runtime has no kernel for GroupNormalization, neither on CPUs nor with CUDA: it expands each into some forty
    nodes, a quarter of a small network's time. TensorRT has one, and should get the graph without this.

    LayerNormalization has a scale of ones, as large as what it normalises. A scale that is broadcast over it, which
    ONNX allows, saves the last two nodes, but ONNX Runtime below 1.24 refuses it, on CPUs its slow path runs it, and
    its CUDA kernel (1.31 at least) computes something else and says nothing: images were off by 0.5.

    Where a call chooses a size, no scale can be as large: there it is InstanceNormalization, of groups for channels.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "GroupNormalization":
            continue
        x, scale, bias = node.inputs
        assert x is not None
        assert x.shape is not None
        groups, epsilon = node.attributes["num_groups"].as_int(), _epsilon(node)
        channels, *spatial = (size if isinstance(size, int) else -1 for size in x.shape[1:])
        size, per_channel = channels // groups * math.prod(spatial), (channels, *(1 for _ in spatial))
        sizes = ir.node("Shape", [x])
        if -1 in spatial:
            grouped = ir.node("Reshape", [x, _constant(graph, [0, groups, -1])])
            same = [
                initializer(graph, f"{name}_{groups}", np.full(groups, number, np.float32)) for name, number in UNIT
            ]
            normalised = ir.node("InstanceNormalization", [grouped.outputs[0], *same], {"epsilon": epsilon})
        else:
            grouped = ir.node("Reshape", [x, _constant(graph, [0, groups, size])])
            ones = initializer(graph, f"ones_{size}", np.ones(size, np.float32))
            normalised = ir.node("LayerNormalization", [grouped.outputs[0], ones], {"axis": 2, "epsilon": epsilon})
        several = spatial.count(-1) > 1
        target = sizes.outputs[0] if several else _constant(graph, [0, channels, *spatial])
        back = ir.node("Reshape", [normalised.outputs[0], target])
        scaled = ir.node("Mul", [back.outputs[0], _reshaped(graph, scale, per_channel)])
        shifted = ir.node("Add", [scaled.outputs[0], _reshaped(graph, bias, per_channel)])
        steps = {"sizes": sizes} if several else {}
        steps |= {"grouped": grouped, "normalised": normalised, "back": back, "scaled": scaled, "norm": shifted}
        for suffix, step in steps.items():
            step.outputs[0].name = f"{node.outputs[0].name}_{suffix}"
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], list(steps.values()), node.outputs, shifted.outputs
        )


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

    What is computed of the noise level, once, at export, stays as exact as the network has it.
    """
    varying = {value for value in graph.inputs if value.name != "sigma"}
    for node in list(graph):
        if not any(value in varying for value in node.inputs):
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


def _epsilon(norm: ir.Node) -> float:
    return norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5  # as ONNX has it


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """The initializer that holds these int64 numbers."""
    return initializer(graph, "shape_" + "_".join(map(str, numbers)), np.array(numbers, np.int64))


def _reshaped(graph: ir.Graph, weight: ir.Value | None, shape: tuple[int, ...]) -> ir.Value:
    """The weight in that shape; its name has the shape in it, since one weight may be needed in several."""
    assert weight is not None
    assert weight.const_value is not None
    return initializer(
        graph, f"{weight.name}_as_{'x'.join(map(str, shape))}", weight.const_value.numpy().reshape(shape)
    )


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


def lower_opset(model: ir.Model, opset: int) -> None:
    """Declares an earlier opset, in place, for a graph of operators that the two have in common.

    Between 20 and 21 only GroupNormalization came to mean something else; the others took more types. ``save_checked``
    finds an operator or an attribute that the earlier opset does not have.
    """
    assert not any(node.op_type == "GroupNormalization" for graph in model.graphs() for node in graph)
    model.opset_imports[""] = min(model.opset_imports[""], opset)


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
            norm = ir.node(
                "GroupNormalization",
                [x, *(_reshaped(graph, weight, (-1,)) for weight in weights)],
                {"num_groups": groups, "epsilon": _epsilon(node)},
            )
            norm.outputs[0].name = f"{node.outputs[0].name}_group"
            ir.convenience.replace_nodes_and_values(graph, node, nodes, [norm], nodes[-1].outputs, norm.outputs)


def lowered_group_norm(node: ir.Node) -> tuple[list[ir.Node], ir.Value, list[ir.Value], int] | None:
    """The five nodes around this LayerNormalization, their input, scale and bias, and the number of groups.

    None unless they are a group norm of images [n, C, H, W] with two groups or more.
    """
    grouped, ones, *shift = node.inputs
    into = grouped.producer() if grouped else None
    if into is None or into.op_type != "Reshape" or shift or ones is None or ones.const_value is None:
        return None
    nodes, weights = [into, node], []
    for op_type in ("Reshape", "Mul", "Add"):
        readers = nodes[-1].outputs[0].consumers()
        if len(readers) != 1 or readers[0].op_type != op_type or readers[0].inputs[0] is not nodes[-1].outputs[0]:
            return None
        nodes.append(readers[0])
        weight = readers[0].inputs[1]
        if weight is None or weight.const_value is None:
            return None
        weights.append(weight)
    x, shape = into.inputs[0], weights.pop(0).const_value.numpy().tolist()  # type: ignore[union-attr]
    if x is None or x.shape is None or len(x.shape) != 4 or len(shape) != 4 or list(x.shape[1:]) != shape[1:]:
        return None
    channels = shape[1]
    target = into.inputs[1]
    if target is None or target.const_value is None or any(tuple(w.shape or ()) != (channels, 1, 1) for w in weights):
        return None
    _, groups, size = target.const_value.numpy().tolist() if target.const_value.size == 3 else (0, 0, 0)
    ones_of_it = ones.const_value.numpy()
    if groups < 2 or groups * size != math.prod(shape[1:]) or channels % groups or not (ones_of_it == 1).all():
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    if axis not in (2, -1) or ones_of_it.shape != (size,):
        return None
    return nodes, x, weights, groups


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
                widened = _reshaped(graph, value, (1,) * len(shape))
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
