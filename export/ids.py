"""Inputs that a network looks up in a table of embeddings: ids, of which the table has so many rows.

PyTorch refuses an id that is in no row. A graph's Gather counts one below 0 from the end, and what an engine reads
beyond the last row is not defined. So bundles tell how many rows there are, and ids are checked before a run. Ids that
the network computes cannot be told: what one that is in no row looks up is NaN, which nobody takes for an image.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.fx import Node

from edge_sampler.export.captured import ATEN, ends_of, graphs_of, is_made_of, put, replace_unless, replacing
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError

IDS = "ids"  # of a graph's input: its metadata's name for the number of rows
SAME_VALUES = {  # of operators that only bring values to other places; those that leave some out are none of them
    getattr(ATEN, name)
    for name in (
        "alias", "broadcast_to", "cat", "clone", "contiguous", "detach", "expand", "flatten", "flip", "movedim",
        "permute", "repeat", "repeat_interleave", "reshape", "roll", "squeeze", "stack", "t", "tile", "transpose",
        "unflatten", "unsqueeze", "view",
    )
}  # fmt: skip
WHOLE = (torch.int32, torch.int64)
ALONG = {getattr(ATEN, name) for name in ("index_add", "index_add_", "index_copy", "index_copy_")}
EACH = {getattr(ATEN, name + place) for name in ("scatter", "scatter_add", "scatter_reduce") for place in ("", "_")}
WRITES = ALONG | EACH  # of (table, axis, ids, what is written, …)


@dataclass(frozen=True)
class Lookup:
    """``rows`` is a symbol where their number varies; ``behind`` how many axes that which belongs to an id has."""

    ids: Any
    rows: Any
    behind: int


def hold_ids(program: torch.export.ExportedProgram) -> dict[int, int]:
    """By an input's place, the rows of the smallest table that its values are looked up in as they are.

    Changes the program: what other ids find or write, which are in no row, is NaN.
    """
    told: dict[str, int] = {}
    with replacing(program):
        for graph, inputs in graphs_of(program):
            for node in list(graph.nodes):
                if (one := lookup(node)) is None:
                    continue
                ends = {end for end in ends_of(one.ids, keeps_all) if is_made_of(end, inputs)}
                known = graph is program.graph and isinstance(one.rows, int)
                held = {end for end in ends if end.op == "placeholder" and known}
                told |= {end.name: min(one.rows, told.get(end.name, one.rows)) for end in held}
                if ends - held:
                    make_nan(node, one)
    return {place: told[name] for place, name in enumerate(program.graph_signature.user_inputs) if name in told}


def lookup(node: Any) -> Lookup | None:
    """What a node looks up; None where it does not."""
    kind = getattr(node.target, "overloadpacket", None)
    if kind is ATEN.one_hot:
        return Lookup(node.args[0], node.args[1], 0)
    if kind is ATEN.embedding:
        return Lookup(node.args[1], rows_along(node.args[0], 0), 1)
    if kind is ATEN.gather or kind in EACH:
        return Lookup(node.args[2], rows_along(*node.args[:2]), 0)
    if kind is ATEN.index_select or kind in ALONG:
        axes = node.meta["val"].ndim
        return Lookup(node.args[2], rows_along(*node.args[:2]), axes - 1 - node.args[1] % axes)
    return None


def rows_along(table: Any, axis: Any) -> Any:
    return table.meta["val"].shape[axis]


def keeps_all(node: Any) -> bool:
    """Whether all its inputs' values are among its own, as they are."""
    kind = getattr(node.target, "overloadpacket", None)
    if kind is ATEN.slice:  # as of value[:, None]
        start, end, step = (*node.args, *[None] * 3)[2:5]
        return start in (None, 0) and end in (None, sys.maxsize) and step in (None, 1)
    if kind in (ATEN.to, ATEN._to_copy):
        return all(one.meta["val"].dtype in WHOLE for one in (node, node.args[0]))
    return kind in SAME_VALUES


def make_nan(node: Node, of: Lookup) -> None:
    """What the node finds or writes by ids that are in no row becomes NaN; in the place of such an id it takes 0."""
    writes = getattr(node.target, "overloadpacket", None) in WRITES
    if not node.meta["val"].dtype.is_floating_point or (writes and gives_more(node)):
        return
    with node.graph.inserting_before(node):
        valid = put(node, ATEN.ge.Scalar, of.ids, 0)
        if isinstance(of.rows, int):
            valid = put(node, ATEN.logical_and.default, valid, put(node, ATEN.lt.Scalar, of.ids, of.rows))
        node.replace_input_with(of.ids, put(node, ATEN.where.ScalarOther, valid, of.ids, 0))
        for _ in range(of.behind):
            valid = put(node, ATEN.unsqueeze.default, valid, -1)
    if writes:
        write_nan(node, valid)
    else:
        replace_unless(valid, node, math.nan)


def gives_more(node: Any) -> bool:
    """Whether it is given more to write than it has ids for."""
    _, _, ids, written, *_ = node.args
    shapes = [list(map(str, one.meta["val"].shape)) for one in (ids, written) if isinstance(one, Node)]
    return node.target.overloadpacket in EACH and shapes[0] != shapes[-1]


def write_nan(node: Any, valid: Node) -> None:
    """The node writes NaN where that is not valid."""
    table, axis, ids, written, *others = node.args
    with node.graph.inserting_before(node):
        if not isinstance(written, Node):  # one number for all
            zeros = put(node, ATEN.mul.Scalar, put(node, ATEN.to.dtype, ids, table.meta["val"].dtype), 0.0)
            written, node.target = put(node, ATEN.add.Scalar, zeros, written), node.target.overloadpacket.src
        written = put(node, ATEN.where.ScalarOther, valid, written, math.nan)
    node.args = (table, axis, ids, written, *others)


def note(graph: ir.Graph, rows: Mapping[int, int]) -> None:
    """Writes at a graph's inputs what ``hold_ids`` found."""
    for place, number in rows.items():
        graph.inputs[place].metadata_props[IDS] = str(number)


def with_ids(spec: ModelSpec, graphs: list[ir.Model]) -> ModelSpec:
    """The spec whose conditions tell what was noted at these graphs' inputs.

    Raises UserError where a condition's null is in no row.
    """
    rows: dict[str, int] = {}
    for value in (value for model in graphs for value in model.graph.inputs):
        if IDS in value.metadata_props:
            name, number = str(value.name), int(value.metadata_props[IDS])
            rows[name] = min(number, rows.get(name, number))

    for name, one in {**spec.inputs.conditions, **spec.raw}.items():
        null = 0 if one.null is None else np.asarray(one.null)
        if name in rows and not np.all((null >= 0) & (null < rows[name])):
            raise UserError(
                f"{name} is looked up in a table of {rows[name]} rows, and its null, {one.null!r:.40}, is none of them"
            )

    def told(conditions: Mapping[str, Condition]) -> dict[str, Condition]:
        return {
            name: replace(one, ids=rows[name]) if name in rows and not 0 < one.limit <= rows[name] else one
            for name, one in conditions.items()
        }

    inputs = replace(spec.inputs, conditions=told(spec.inputs.conditions))
    return replace(spec, inputs=inputs, raw=told(spec.raw))
