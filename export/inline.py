"""Puts ONNX graphs in place of the nodes that stand for them, which an export of ``models/onnx_graph.py`` leaves."""

from collections.abc import Iterable

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, LiftConstantsToInitializersPass, ShapeInferencePass, TopologicalSortPass

from edge_sampler.export.canvas import Values
from edge_sampler.models.onnx_graph import DOMAIN, OnnxGraph
from edge_sampler.runtime.errors import UserError


def inline(exported: ir.Model, graphs: Iterable[OnnxGraph], opset: int) -> None:
    """Each such node becomes the graph's nodes, in place; a graph that is called twice keeps one set of weights.

    Raises UserError for a graph that cannot be part of another: of a later opset, or with control flow.
    """
    by_type = {graph.op_type: graph for graph in graphs}
    loaded: dict[str, ir.Graph] = {}
    weights: Values = {}
    for node in list(exported.graph):
        if node.domain == DOMAIN:
            if node.op_type not in loaded:
                loaded[node.op_type] = read(by_type[node.op_type], opset)
            put(exported.graph, node, loaded[node.op_type], by_type[node.op_type], weights)
    if loaded:
        for graph in loaded.values():
            exported.graph.opset_imports.update({**graph.opset_imports, "": opset})
        exported.graph.opset_imports.pop(DOMAIN, None)
        ShapeInferencePass()(exported)


def read(graph: OnnxGraph, opset: int) -> ir.Graph:
    """The graph of that opset, one list of nodes."""
    model, lift = ir.load(graph.path), LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    TopologicalSortPass()(model)
    InlinePass()(model)
    lift(model)
    ir.external_data.set_base_dir(model.graph, graph.path.parent)  # for what a function has in files, too
    for value in (value for node in model.graph if not node.domain for value in node.outputs):
        if not value.is_graph_output():  # ONNX finds these anew, and fails where the file's own are wrong
            value.shape = value.type = None
    found = model.graph.opset_imports.get("", 0)
    if found > opset:
        raise UserError(f"{graph.path} is of opset {found}; graphs here are of {opset}: export it with that, or less")
    if found < opset:
        try:
            ir.external_data.load_to_model(model)
            model.ir_version = max(model.ir_version, 4)  # before it, the converter knows inputs alone as weights
            model = ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
        except Exception as error:  # the converter raises RuntimeError and others
            raise UserError(f"{graph.path} is of opset {found}, and ONNX cannot make {opset} of it: {error}") from error
    for node in model.graph:
        if any(one.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for one in node.attributes.values()):
            raise UserError(f"{graph.path} has control flow ({node.op_type}), which cannot be unrolled")
    lift(model)  # those that the converter made
    return model.graph


def put(into: ir.Graph, node: ir.Node, graph: ir.Graph, known: OnnxGraph, weights: Values) -> None:
    """Replaces ``node`` by copies of the graph's nodes. ``weights`` grow by those that ``into`` gets."""
    taken = {value.name for value in (*into.inputs, *into.initializers.values())}
    taken |= {name for one in into for name in (one.name, *(value.name for value in one.outputs))}
    values: Values = dict(zip((named(graph, name) for name in known.inputs), node.inputs, strict=True))  # type: ignore[arg-type]

    def free(name: str | None) -> str:
        new = f"{name}"
        while new in taken:
            new += "_"
        taken.add(new)
        return new

    def bring(value: ir.Value) -> ir.Value:
        if value not in weights:
            tensor = value.const_value
            assert tensor is not None
            weights[value] = ir.Value(
                name=free(value.name), shape=value.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            into.register_initializer(weights[value])
        return weights[value]

    made = []
    for one in graph:
        inputs = [None if value is None else values.get(value) or bring(value) for value in one.inputs]
        outputs = [ir.Value(name=free(value.name), shape=value.shape, type=value.type) for value in one.outputs]
        values.update(zip(one.outputs, outputs, strict=True))
        made.append(
            ir.Node(one.domain, one.op_type, inputs, one.attributes.values(), outputs=outputs, name=outputs[0].name)
        )
    ends = [values.get(value) or bring(value) for value in graph.outputs]
    for place, end in enumerate(ends):
        if end.producer() not in made:  # an input or a weight may be an output
            made.append(ir.node("Identity", [end]))
            ends[place] = made[-1].outputs[0]
            ends[place].name = free(end.name)
    ir.convenience.replace_nodes_and_values(into, node, [node], made, node.outputs, ends)


def named(graph: ir.Graph, name: str) -> ir.Value:
    (value,) = (value for value in graph.inputs if value.name == name)
    return value
