"""Mixed precision, written into the graph: what the nodes' types say is what every engine computes.

The network's weights and activations are lowered. The solver's weighted sums, the preconditioning and the skip path
stay float32, since states reach σ = 80 and images are a small difference between large terms (EDM, arXiv 2206.00364,
keeps them so too). Softmax stays float32; normalizations take their statistics in float32, as ONNX's ``stash_type``
says.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.canvas import SAMPLE
from edge_sampler.export.initializer import initializer
from edge_sampler.export.lower import multiply_and_add
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.runtime.errors import UserError

WEIGHTED = ("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul")  # a network begins and ends with one that has weights
MASKING = ("Add", "Where")  # whose arrays may be masks
RESTORED = "DequantizeLinear"  # of a weight of eight bits
FLOAT32_INPUTS = {"Resize": (1, 2)}  # regions and scales, which ONNX has in float32 alone


def lower_precision(model: ir.Model, precision: str) -> None:
    """The sampler's graph (or the denoiser's) in one of ``precisions``, in place; inputs and outputs keep their types.

    Raises UserError when a weight is too large for it, and where nothing is to be lowered.
    """
    ShapeInferencePass()(model)
    lowered: set[ir.Value] = set()  # a loop's body reads values of the graph around it, which comes first
    for graph in model.graphs():
        clip_masks(graph, precision)
        if not PRECISIONS[precision].batch_norm:
            multiply_and_add(graph)
        _lower(graph, precision, lowered)
    if not lowered:
        raise UserError(
            f"{precision} would change nothing: the network has no {', '.join(WEIGHTED)} with weights of its own"
        )
    for value in lowered:
        value.dtype = PRECISIONS[precision].dtype
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], PRECISIONS[precision].opset)


def clip_masks(graph: ir.Graph, precision: str) -> None:
    """Numbers beyond the precision's range, with which masks hide, become its largest, in place.

    They are single ones, and those below the range that an array adds or chooses. A network's own float32 minimum would
    be an infinity, and a row that is hidden whole not a number. Infinities stay, and so do the numbers around the
    network that weigh states: noise of a flow's first level is multiplied by 1e7.
    """
    largest, inside = PRECISIONS[precision].largest, inside_network(graph, precision)
    first = graph.inputs[0]
    states = {first} if first.name in ("noise", "x") else set(graph.inputs)  # those of a loop's body are states
    for node in graph:
        known = [value for value in node.inputs if value is not None]
        if node not in inside and any(value in states or value.producer() in inside for value in known):
            states.update(node.outputs)
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.const_value is None or not value.is_initializer():
                continue
            if value.dtype != ir.DataType.FLOAT or (value.const_value.size != 1 and node.op_type not in MASKING):
                continue
            numbers = value.const_value.numpy()
            beyond = np.isfinite(numbers) & (np.abs(numbers) > largest)
            if beyond.any() and (numbers.size == 1 or (numbers[beyond] < 0).all()):
                clipped = np.where(beyond, np.clip(numbers, -largest, largest), numbers).astype(np.float32)
                node.replace_input_with(index, initializer(graph, f"{value.name}_clipped", clipped))


def _lower(graph: ir.Graph, precision: str, lowered: set[ir.Value]) -> None:
    """``lowered`` grows by the values whose type is to become low."""
    dtype = PRECISIONS[precision].dtype
    low = inside_network(graph, precision)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    lowered |= {value for node in low for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    for node in list(graph):
        for name in {"to", "dtype"} & node.attributes.keys() if node in low else ():  # of a Cast of whole numbers, too
            if node.attributes[name].as_int() == ir.DataType.FLOAT.value:
                node.attributes[name] = ir.AttrInt64(name, dtype.value)
        wanted = dtype if node in low else ir.DataType.FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT:
                continue
            if value.is_initializer():
                if node in low and index not in FLOAT32_INPUTS.get(node.op_type, ()):
                    node.replace_input_with(index, _lowered_weight(graph, value, precision))
            elif (value in lowered) != (node in low):
                if (value, wanted) not in casts:
                    casts[value, wanted] = _cast(graph, value, wanted)
                node.replace_input_with(index, casts[value, wanted])
    for value in list(graph.outputs):  # a decoder may end with weights
        if value in lowered:
            _give_out(graph, value, _cast(graph, value, ir.DataType.FLOAT))


def round_activations(model: ir.Model, precision: str) -> None:
    """The same graph in float32, in place, each value that ``lower_precision`` lowers being rounded where it is made.

    So a CPU measures what a precision costs: sums in float32, operands and results in 16 bits, as on tensor cores.
    ONNX Runtime's CPU kernels have no bfloat16, and keep float32 between the nodes of a float16 graph.
    """
    dtype = PRECISIONS[precision].dtype
    ShapeInferencePass()(model)
    graph = model.graph
    clip_masks(graph, precision)
    if not PRECISIONS[precision].batch_norm:
        multiply_and_add(graph)
    for node in inside_network(graph, precision):
        kept = FLOAT32_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and value.dtype == ir.DataType.FLOAT and index not in kept:
                lowered = _lowered_weight(graph, value, precision)
                assert lowered.const_value is not None
                rounded = lowered.const_value.numpy().astype(np.float32)
                node.replace_input_with(index, initializer(graph, f"{value.name}_rounded", rounded))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                uses = list(value.uses())
                restored = _cast(graph, _cast(graph, value, dtype), ir.DataType.FLOAT)
                for user, index in uses:
                    user.replace_input_with(index, restored)
                if value.is_graph_output():
                    _give_out(graph, value, restored)


def inside_network(graph: ir.Graph, precision: str) -> set[ir.Node]:
    """The nodes to lower: those between the network's first and last weights, in every evaluation."""
    kept, around = PRECISIONS[precision].float32_inside, around_network(graph)
    return {node for node in graph if node not in around and node.op_type not in kept}


def around_network(graph: ir.Graph) -> set[ir.Node]:
    """The nodes before the network's first weights and behind its last ones, in every evaluation.

    Two walks find them, which stop at nodes with weights. One goes back from the outputs: the last weighted sum, c_out,
    the skip path, and through these every earlier state. The other goes on from there and from the inputs: c_in, the
    classes' one-hot rows. With a decoder the first walk starts at the last state as well.
    """
    outside: set[ir.Node] = set()
    ends = [*graph.outputs, *(value for node in graph for value in node.outputs if value.name == SAMPLE)]
    waiting = [value.producer() for value in ends]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in outside and not _has_weights(node):
            outside.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    for node in graph:
        sources = [value.producer() for value in node.inputs if value is not None and not value.is_initializer()]
        if not _has_weights(node) and all(source is None or source in outside for source in sources):
            outside.add(node)
    return outside


def _has_weights(node: ir.Node) -> bool:
    return node.op_type in (*WEIGHTED, RESTORED) and any(
        value is not None and value.is_initializer() for value in node.inputs
    )


def _lowered_weight(graph: ir.Graph, value: ir.Value, precision: str) -> ir.Value:
    """The initializer in that precision."""
    assert value.const_value is not None
    low = PRECISIONS[precision]
    array = value.const_value.numpy()
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0))
    if largest > low.largest:
        raise UserError(f"{value.name} holds {largest:.3g}, more than {precision}'s {low.largest:g}: {low.advice}")
    return initializer(graph, f"{value.name}_{precision}", array.astype(low.dtype.numpy()))


def _give_out(graph: ir.Graph, value: ir.Value, instead: ir.Value) -> None:
    """``instead`` becomes the graph's output in the value's place, of its name."""
    place, name = list(graph.outputs).index(value), value.name
    value.name, instead.name = f"{name}_inside", name
    graph.outputs[place] = instead


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A cast of the value, placed behind the node that makes it, or first of all."""
    node = ir.node("Cast", [value], {"to": dtype.value})
    result = node.outputs[0]
    result.name, result.shape, result.type = f"{value.name}_{dtype.name.lower()}", value.shape, ir.TensorType(dtype)
    producer = value.producer()
    if producer is None or producer.graph is not graph:  # an input, or a value around the loop
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return result
