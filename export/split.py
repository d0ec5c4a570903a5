"""Splits layers that join the noise level with conditions, before nodes are sorted by what they depend on.

A network often concatenates its noise embedding with an observation's and passes both through one layer. Neither half
changes with the state: W·[a, b] is W_a·a + W_b·b, where the first is a constant and the second is computed once. And
networks repeat the noise level for each sample before they embed it: here one row goes through the embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edge_sampler.export.initializer import initializer
from edge_sampler.export.take_apart import CONSTANT, GIVEN, sources

SMOOTH = ("Elu", "Erf", "Exp", "Gelu", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Softplus", "Tanh")
UNARY = (*SMOOTH, "Cast", "Cos", "Identity", "Log", "Neg", "Sin", "Sqrt")
BINARY = ("Add", "Div", "Equal", "Mul", "Pow", "Sub")
LAYERS = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Piece:
    """A part of a concatenation along its last axis."""

    value: ir.Value
    width: int
    constant: bool  # whether the noise level alone decides it


def split_joined(graph: ir.Graph) -> None:
    """Both rewrites, in place."""
    before = len(graph)
    split_layers(graph, use_single_rows(graph))
    if len(graph) > before:
        RemoveUnusedNodesPass()(ir.Model(graph, ir_version=10))


def use_single_rows(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """What is repeated for each sample, and depends on the noise level alone, is computed for one, in place.

    Readers that broadcast get the one row; others keep the repeated ones. Returns the single rows by those.
    """
    found = sources(graph)
    single: dict[ir.Value, ir.Value] = {}

    def alone(value: ir.Value | None) -> bool:
        return value is None or value in single or found.get(value, frozenset()) <= CONSTANT

    for node in list(graph):
        first, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type == "Expand" and first is not None and alone(first):
            row = single.get(first, first)
            if row.shape is not None and out.shape is not None and len(row.shape) == len(out.shape):
                single[out] = row
        elif any(value in single for value in node.inputs) and all(map(alone, node.inputs)):
            rows = [None if value is None else single.get(value, value) for value in node.inputs]
            if row_by_row(node, rows):
                single.update(zip(node.outputs, copied(graph, node, rows), strict=True))
        elif node.op_type in BINARY:
            for index, value in enumerate(node.inputs):
                other = node.inputs[1 - index]
                if value in single and other is not None and other.shape is not None and other.shape == out.shape:
                    node.replace_input_with(index, single[value])
    return single


def row_by_row(node: ir.Node, rows: Sequence[ir.Value | None]) -> bool:
    """Whether the node computes of single rows what it computes of each of those that repeat them."""
    if any(row is not None and row.shape is None for row in rows):
        return False
    if node.op_type in (*UNARY, *BINARY, "Unsqueeze"):
        return True
    if not along_last_axis(node):
        return False
    data = range(len(rows) if node.op_type == "Concat" else 1)
    same_width = all(width(node.inputs[index]) == width(rows[index]) for index in data)
    return same_width and len({tuple(rows[index].shape[:-1]) for index in data}) == 1  # type: ignore[union-attr, index]


def along_last_axis(node: ir.Node) -> bool:
    """Whether the node changes nothing but each row."""
    if node.op_type in LAYERS:
        return matrix_of(node) is not None
    shape = node.outputs[0].shape
    if node.op_type not in ("Concat", "LayerNormalization", "Split") or shape is None:
        return False
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -int(node.op_type != "Split")
    return axis % len(shape) == len(shape) - 1


def split_layers(graph: ir.Graph, single: Mapping[ir.Value, ir.Value]) -> None:
    """Layers of a concatenation of what the noise level decides and what conditions decide, in place."""
    found = sources(graph)
    pieces: dict[ir.Value | None, list[Piece]] = {}
    for node in list(graph):
        first, out = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type == "Concat" and along_last_axis(node):
            joined = [  # a row may also be repeated along itself
                row if width(row := single.get(value, value)) == width(value) else value
                for value in node.inputs
                if value is not None
            ]
            parts = [Piece(value, width(value), found[value] <= CONSTANT) for value in joined if value in found]
            told = all(part.width and (part.constant or found[part.value] == {GIVEN}) for part in parts)
            if told and len(parts) == len(joined) and len({part.constant for part in parts}) == 2:
                pieces[out] = parts
        elif node.op_type in LAYERS and first in pieces and (matrix := matrix_of(node)) is not None:
            replace_layer(graph, node, pieces[first], matrix)
        elif node.op_type in UNARY and first in pieces:
            pieces[out] = [
                Piece(copied(graph, node, [part.value])[0], part.width, part.constant) for part in pieces[first]
            ]
        elif node.op_type in BINARY and all(value in pieces for value in node.inputs):
            one, other = (pieces[value] for value in node.inputs)
            if [part.width for part in one] == [part.width for part in other]:
                pieces[out] = [
                    Piece(copied(graph, node, [a.value, b.value])[0], a.width, a.constant and b.constant)
                    for a, b in zip(one, other, strict=True)
                ]


def replace_layer(graph: ir.Graph, node: ir.Node, pieces: Sequence[Piece], matrix: np.ndarray) -> None:
    """W·[a, b, …] + bias → (W_a·a + bias) + W_b·b, constants summed apart, so that one sum joins both kinds."""
    (weight, *bias), out = node.inputs[1:], node.outputs[0]
    assert weight is not None
    sums: dict[bool, ir.Value] = {True: bias[0]} if bias and bias[0] is not None else {}
    start = 0
    for piece in pieces:
        end = start + piece.width
        name = f"{weight.name}_rows{start}_{end}"  # of layers that share it, each has its own pieces
        rows = initializer(graph, name, np.ascontiguousarray(matrix[start:end]))
        product = placed(graph, node, "MatMul", [piece.value, rows], f"{out.name}%{start}")
        summed = sums.get(piece.constant)
        start = end
        sums[piece.constant] = (
            product if summed is None else placed(graph, node, "Add", [summed, product], f"{out.name}%sum{start}")
        )
    total = placed(graph, node, "Add", [sums[True], sums[False]], f"{out.name}%joined")
    total.shape, total.type = out.shape, out.type
    ir.convenience.replace_all_uses_with(out, total)


def matrix_of(node: ir.Node) -> np.ndarray | None:
    """The weights [in, out] of a layer that has them; None for a product of two values, or one with factors."""
    weight = node.inputs[1]
    if (
        weight is None
        or weight.const_value is None
        or not weight.is_initializer()
        or len(weight.const_value.shape) != 2
    ):
        return None
    numbers = {name: attribute.value for name, attribute in node.attributes.items()}
    transposed = numbers.pop("transB", 0)
    if any(value != int(name != "transA") for name, value in numbers.items()):  # alpha, beta: 1
        return None
    matrix = weight.const_value.numpy()
    return matrix.T if transposed else matrix


def copied(graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value | None]) -> Sequence[ir.Value]:
    """The outputs of one more such node, placed before it, that reads ``inputs``, whose shapes are known."""
    suffix = f"%{inputs[0].name}" if inputs[0] is not None else "%"
    outputs = [ir.Value(name=f"{out.name}{suffix}", type=out.type) for out in node.outputs]
    graph.insert_before(node, ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), outputs=outputs))
    shapes = [() if value is None or value.shape is None else tuple(value.shape) for value in inputs]
    for made, out in zip(outputs, node.outputs, strict=True):
        if node.op_type in BINARY:
            made.shape = ir.Shape(broadcast(shapes))
        elif node.op_type == "Unsqueeze":
            sizes: Any = shapes[0]
            axes = inputs[1].const_value if inputs[1] is not None else None
            if axes is not None and all(isinstance(size, int) for size in sizes):
                made.shape = ir.Shape(np.expand_dims(np.empty(sizes), tuple(axes.numpy())).shape)
        else:
            last = [] if not shapes[0] else [shapes[0][-1] if node.op_type in UNARY else width(out)]
            made.shape = ir.Shape([*shapes[0][:-1], *last])
    return outputs


def broadcast(shapes: Sequence[tuple[int | ir.SymbolicDim, ...]]) -> list[int | ir.SymbolicDim]:
    rank = max(map(len, shapes))
    columns = zip(*((*(1,) * (rank - len(shape)), *shape) for shape in shapes), strict=True)
    return [next((size for size in sizes if size != 1), 1) for sizes in columns]


def placed(graph: ir.Graph, before: ir.Node, op_type: str, inputs: Sequence[ir.Value], name: str) -> ir.Value:
    node = ir.node(op_type, inputs)
    node.outputs[0].name, node.outputs[0].type = name, before.outputs[0].type
    graph.insert_before(before, node)
    return node.outputs[0]


def width(value: ir.Value | None) -> int:
    """The size of the last axis; 0 where nobody knows it."""
    size = value.shape[-1] if value is not None and value.shape else 0
    return size if isinstance(size, int) else 0
