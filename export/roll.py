"""Rolls the whole sampling loop into one graph that holds the denoiser once: ``unroll``'s graph, as an ONNX Loop.

What an evaluation knows beforehand (its row of the plan's table, and what its noise level alone decides) is stacked
into tables and gathered by the iteration's number; the denoised samples are collected in the loop's state. What
conditions alone decide is computed before the loop. Names of its own begin with @, which no condition's does.
"""

import numpy as np
import onnx_ir as ir

from edge_sampler.export.canvas import OUTPUTS, Canvas, Ends, draw_mean
from edge_sampler.export.split import split_joined
from edge_sampler.export.take_apart import take_apart
from edge_sampler.runtime.plan import Plan


def roll(
    exported: ir.Model,
    plan: Plan,
    output: str = "float32",
    encoder: ir.Model | None = None,
    decoder: ir.Model | None = None,
    output_name: str = "images",
) -> ir.Model:
    """The graph of the whole sampler, as ``unroll`` makes it, of the same arguments.

    The loop's state is what the columns of the plan's table multiply, float32 [columns, batch, *shape]: the noise, the
    plan's mean where it has one, and the denoised samples, zeros until known.
    """
    assert output in OUTPUTS
    ends = Ends(encoder, decoder, output, output_name)
    graph = exported.graph.clone()
    split_joined(graph)
    canvas = ends.open(graph)
    noise = canvas.inputs["noise"]
    assert noise.shape is not None

    columns, ones = len(plan.table[-1]), [1] * len(noise.shape)
    rows = np.zeros((plan.nfe + 1, columns), np.float32)
    for index, weights in enumerate(plan.table):
        rows[index, : len(weights)] = weights
    rows, places = (matrix.reshape(*matrix.shape, *ones) for matrix in (rows, np.eye(columns, dtype=np.float32)))
    start = canvas.add("Mul", [noise, canvas.constant("@noise_place", places[0])], "@state_of_noise")
    if plan.afs:
        mean = draw_mean(canvas, exported, np.array(plan.mean, np.float32), places[1])
        start = canvas.add("Add", [start, mean], "@state_start")
    state = ir.Value(name="@state", shape=ir.Shape([columns, *noise.shape]), type=noise.type)
    body = draw_body(graph, plan, canvas, state, rows[:-1], places[1 + plan.afs :])
    # Without a condition: where there is one, TensorRT adds a second limit to the loop.
    operands = [canvas.constant("@nfe", np.array(plan.nfe)), None, start]
    finished = canvas.add("Loop", operands, "@state_end", {"body": ir.AttrGraph("body", body)})

    last = canvas.constant("@last_row", rows[-1])
    return ends.close(exported, canvas, weighted_sum(canvas, last, finished, ends.state_name))


def draw_body(
    graph: ir.Graph, plan: Plan, outer: Canvas, state: ir.Value, rows: np.ndarray, places: np.ndarray
) -> ir.Graph:
    """One iteration: step int64 [], going bool [], state → going, state with one more denoised sample.

    Takes the nodes and weights out of ``graph``, the exported denoiser. The weights go into the body: outside, ONNX
    Runtime does not rearrange the convolutions' for the CPU. Unlike in ``unroll``, shifts do not join biases, which
    would then vary between iterations. ``rows`` and ``places`` are float32 [nfe, columns, 1, 1, …]; of a
    plan that clips, places are twice as many.
    """
    step = ir.Value(name="@step", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    going = ir.Value(name="@going", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    body = Canvas([step, going, state])

    def gather(name: str, table: np.ndarray) -> ir.Value:
        return body.add("Gather", [body.constant(f"{name}@table", table), step], f"{name}@now")

    parts = take_apart(graph, sorted(set(plan.sigmas)))
    now = parts.draw_once(outer)  # a loop's body sees the values around it
    now |= {value: weighted_sum(body, gather("@row", rows), state, "@x") for value in graph.inputs if value.name == "x"}
    denoised = graph.outputs[0]
    graph.outputs.clear()
    graph.remove(parts.stamped)
    for node in parts.stamped:
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            name = str(value.name)
            if value not in now and name in parts.levelled:
                now[value] = gather(name, np.stack([parts.constants[sigma][name] for sigma in plan.sigmas]))
            elif value not in now and name in parts.constants[plan.sigmas[0]]:
                now[value] = body.constant(f"{name}@all", parts.constants[plan.sigmas[0]][name])
            elif name in outer.weights and outer.weights[name].const_value is value.const_value:
                now[value] = outer.weights[name]
            if value in now:
                node.replace_input_with(index, now[value])
            elif name in graph.initializers:
                body.weights[name] = graph.initializers.pop(name)
    body.nodes.extend(parts.stamped)

    placed = body.add("Mul", [denoised, gather("@place", places[:: plan.columns])], "@placed")
    updated = body.add("Add", [state, placed], "@state_next")
    if plan.clip:
        bounds = [body.constant(f"@clip{bound:g}", np.array(bound, np.float32)) for bound in (-plan.clip, plan.clip)]
        clipped = body.add("Clip", [denoised, *bounds], "@clipped")
        placed = body.add("Mul", [clipped, gather("@clipped_place", places[1 :: plan.columns])], "@clipped_placed")
        updated = body.add("Add", [updated, placed], "@state_next_clipped")
    updated.shape, updated.type = state.shape, state.type
    on = body.add("Identity", [body.constant("@always", np.array(True))], "@going_on")
    on.shape, on.type = going.shape, going.type
    return ir.Graph(
        [step, going, state],
        [on, updated],
        nodes=body.nodes,
        initializers=list(body.weights.values()),
        name="evaluation",
    )


def weighted_sum(canvas: Canvas, weights: ir.Value, state: ir.Value, name: str) -> ir.Value:
    """weights [columns, 1, 1, …] · state [columns, batch, *shape] → [batch, *shape].

    Not a matrix product: engines may compute those in TF32, and the noise's weight is up to sigma_max.
    """
    first = canvas.constant(f"{name}@axes", np.array([0]))
    products = canvas.add("Mul", [weights, state], f"{name}@terms")
    return canvas.add("ReduceSum", [products, first], name, {"keepdims": ir.AttrInt64("keepdims", 0)})
