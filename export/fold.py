"""Moves arithmetic on images into the weights of convolutions.

Each rewrite puts nodes that compute new weights before the convolution that reads them. They depend on no input, so
that they are computed once, here, last of all.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edge_sampler.export.initializer import initializer, reshaped
from edge_sampler.export.lower import epsilon_of, scales_and_shifts
from edge_sampler.export.take_apart import Sources, session_of, sources

CONVOLUTIONS = ("Conv", "ConvTranspose")
NORMS = ("InstanceNormalization", "LayerNormalization")
OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "Add": np.add,
    "Flatten": lambda weight: weight.reshape(len(weight), -1),
    "MatMul": np.matmul,
    "Mul": np.multiply,
}
MOST = 8  # times larger or smaller, so that 16 bits hold the weights as well as before


def fold_into_weights(model: ir.Model) -> None:
    """All of these rewrites, in place."""
    join_norms_to_convolutions(model.graph)
    multiply_weights(model.graph)
    model.graph.sort()  # one weight may be another convolution's too, that stood before
    compute_weights(model.graph)


def join_norms_to_convolutions(graph: ir.Graph) -> None:
    """A norm's scale and shift → weights and bias of the 1×1 convolution that alone reads them, in place.

    Attention begins so, where ``lower_group_norm`` has left them as a node of their own.
    """
    found = sources(graph)
    for node in list(graph):
        affine, uses = node.outputs[0], node.outputs[0].uses()
        if not scales_and_shifts(node) or len(uses) != 1 or affine.is_graph_output():
            continue
        ((convolution, place),) = uses
        weight = convolution.inputs[1] if convolution.op_type == "Conv" and place == 0 else None
        if weight is None or found.get(weight) or not is_pointwise(convolution):
            continue
        normal, scale, shift = node.inputs[:3]
        assert scale is not None
        assert scale.const_value is not None
        assert weight.shape is not None
        per_channel = reshaped(graph, scale, (scale.const_value.size, *[1] * (len(weight.shape) - 2)))
        rows = computed(graph, convolution, "Flatten", [weight])
        bias = computed(graph, convolution, "MatMul", [rows, shift])
        if convolution.inputs[2:] and convolution.inputs[2] is not None:  # the exporter leaves out a bias of zeros
            bias = computed(graph, convolution, "Add", [convolution.inputs[2], bias])
        convolution.resize_inputs(3)
        convolution.replace_input_with(1, computed(graph, convolution, "Mul", [weight, per_channel]))
        convolution.replace_input_with(2, bias)
        convolution.replace_input_with(0, normal)
        graph.remove(node, safe=True)


def multiply_weights(graph: ir.Graph) -> None:
    """factor · (a + b) → a + b, in place, of convolutions whose weights have the factor.

    Residual blocks with a projected skip path end so in DDPM++ and NCSN++, whose factor is √½.
    """
    found = sources(graph)
    for node in list(graph):
        if node.op_type != "Mul":
            continue
        for total, factor in (node.inputs, node.inputs[::-1]):
            assert total is not None
            number = number_of(factor)
            if number is None or not 1 / MOST <= number <= MOST or node.outputs[0].is_graph_output():
                continue
            bearers = bearers_of(total, node, found)
            if bearers is None:
                continue
            for bearer in dict.fromkeys(bearers):  # a + a has each of them twice
                if bearer.op_type in NORMS:
                    bearer.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon_of(bearer) * number**2)
                    continue
                for place, weight in enumerate(bearer.inputs):
                    if place > 0 and weight is not None:
                        bearer.replace_input_with(place, computed(graph, bearer, "Mul", [weight, factor]))
            ir.convenience.replace_all_uses_with(node.outputs[0], total)
            graph.remove(node, safe=True)
            break


def bearers_of(value: ir.Value, reader: ir.Node, found: Sources) -> list[ir.Node] | None:
    """The nodes that a factor behind ``value``, before ``reader``, may go into; None where others would notice it.

    They are the convolutions that it is the sum of, and norms that read parts of it too: normal(factor · x) is
    normal(x), for their epsilon times factor².
    """
    node = value.producer()
    norms = [norm_behind(value, other) for other in value.consumers() if other is not reader]
    if node is None or value.is_graph_output() or None in norms:
        return None
    if node.op_type in CONVOLUTIONS and not found.get(node.inputs[1]):  # type: ignore[arg-type]
        return [node, *norms]  # type: ignore[list-item]
    if node.op_type != "Add":
        return None
    parts = [bearers_of(part, node, found) for part in node.inputs if part is not None]
    return None if None in parts else [*norms, *(bearer for part in parts for bearer in part or ())]  # type: ignore[list-item]


def norm_behind(value: ir.Value, reader: ir.Node) -> ir.Node | None:
    """The norm that this reader of ``value`` is, or that alone reads what it reshapes; None for any other reader."""
    uses, norm = reader.outputs[0].uses(), reader
    if reader.op_type == "Reshape" and len(uses) == 1 and not reader.outputs[0].is_graph_output():
        ((norm, _),) = uses
        value = reader.outputs[0] if reader.inputs[0] is value else value
    alone = list(norm.inputs).count(value) == 1 and norm.inputs[0] is value and len(norm.outputs) == 1
    return norm if norm.op_type in NORMS and alone else None


def is_pointwise(convolution: ir.Node) -> bool:
    """Whether each place of its result is a matrix product of that place alone: nothing is padded, and no group."""
    weight, attributes = convolution.inputs[1], convolution.attributes
    if weight is None or weight.shape is None or any(size != 1 for size in weight.shape[2:]):
        return False
    padded = "pads" in attributes and any(attributes["pads"].as_ints())
    named = "auto_pad" in attributes and attributes["auto_pad"].as_string() not in ("NOTSET", "VALID")
    return not padded and not named and ("group" not in attributes or attributes["group"].as_int() == 1)


def number_of(value: ir.Value | None) -> float | None:
    """The single number that a weight is, without axes of its own; None for anything else."""
    if value is None or value.const_value is None or value.const_value.size != 1 or len(value.const_value.shape) > 1:
        return None
    return float(value.const_value.numpy().item())


def computed(graph: ir.Graph, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None]) -> ir.Value:
    """What a node makes of weights, placed ``before`` another. Nodes that make the same give it the same name.

    Of weights that are known it is a weight. A product is made whenever it is read: it takes no memory beside them.
    """
    first, named = inputs[0], [value for value in inputs if value is not None]
    assert first is not None
    name = "_".join([op_type.lower(), *(str(value.name) for value in named)])
    known = [value.const_value for value in named if value.const_value is not None]
    if len(known) == len(inputs):

        def make() -> ir.TensorProtocol:
            return ir.tensor(OPERATORS[op_type](*(tensor.numpy() for tensor in known)))

        late = op_type == "Mul"
        tensor = ir.LazyTensor(make, known[0].dtype, known[0].shape) if late else make()  # type: ignore[arg-type]
        return initializer(graph, f"{name}@weight", tensor)
    node = ir.node(op_type, inputs)
    made = node.outputs[0]
    made.name = name
    if op_type in ("Add", "Mul"):
        made.shape, made.type = first.shape, first.type
    graph.insert_before(before, node)
    return made


def compute_weights(graph: ir.Graph) -> None:
    """What depends on no input → a weight, in place; weights of eight bits stay so, and what a graph gives out."""
    found, idle = sources(graph), dict[ir.Node, None]()  # in order: an export twice is the same file
    for node in graph:
        makers = {value.producer() for value in node.inputs if value is not None} - {None}
        kept = node.op_type == "DequantizeLinear" or any(value.is_graph_output() for value in node.outputs)
        if not found[node.outputs[0]] and makers <= idle.keys() and not kept:
            idle[node] = None
    made = [value for node in idle for value in node.outputs if {*value.consumers()} - idle.keys()]
    if not made:
        return
    with session_of(graph, [], [str(value.name) for value in made]) as session:
        arrays = session.run({})
    for value in made:
        weight = initializer(graph, f"{value.name}@weight", arrays[str(value.name)])
        ir.convenience.replace_all_uses_with(value, weight)
    graph.remove(list(idle), safe=True)
