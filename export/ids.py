"""Inputs that a network looks up in a table of embeddings: ids, of which the table has so many rows.

PyTorch refuses an id that is in no row. A graph's Gather counts one below 0 from the end, and what an engine reads
beyond the last row is not defined, so bundles tell how many rows there are, and their ids are checked before a run.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir
import torch

from edge_sampler.export.captured import inputs_of
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.condition import Condition

IDS = "ids"  # of a graph's input: its metadata's name for the number of rows
ATEN = torch.ops.aten
SAME_VALUES = {  # of operators that only bring values to other places; those that leave some out are none of them
    getattr(ATEN, name)
    for name in (
        "alias", "broadcast_to", "cat", "clone", "contiguous", "detach", "expand", "flatten", "flip", "movedim",
        "permute", "repeat", "repeat_interleave", "reshape", "squeeze", "stack", "t", "to", "_to_copy", "transpose",
        "unflatten", "unsqueeze", "view",
    )
}  # fmt: skip


def rows_of(program: torch.export.ExportedProgram) -> dict[int, int]:
    """By an input's place, the rows of the smallest table that its values are looked up in as they are."""
    found: dict[str, int] = {}
    for node in program.graph.nodes:
        ids, rows = lookup(node)
        for name in inputs_of(ids, keeps_all) if isinstance(rows, int) else ():
            found[name] = min(rows, found.get(name, rows))
    return {place: found[name] for place, name in enumerate(program.graph_signature.user_inputs) if name in found}


def lookup(node: torch.fx.Node) -> tuple[Any, Any]:
    """What a node looks up, and in how many rows; None twice where it does not, and a symbol for rows that may vary."""
    if node.target is ATEN.one_hot.default:
        return node.args[0], node.args[1]
    if node.target is ATEN.embedding.default:
        return node.args[1], rows_along(node.args[0], 0)
    if node.target is ATEN.index_select.default:
        return node.args[2], rows_along(node.args[0], node.args[1])
    return None, None


def rows_along(table: Any, axis: Any) -> Any:
    return table.meta["val"].shape[axis]


def keeps_all(node: torch.fx.Node) -> bool:
    """Whether all its inputs' values are among its own, as they are."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet is ATEN.slice:  # as of value[:, None]
        start, end, step = (*node.args, *[None] * 3)[2:5]
        return start in (None, 0) and end in (None, sys.maxsize) and step in (None, 1)
    return packet in SAME_VALUES


def note(graph: ir.Graph, rows: Mapping[int, int]) -> None:
    """Writes at a graph's inputs what ``rows_of`` found."""
    for place, number in rows.items():
        graph.inputs[place].metadata_props[IDS] = str(number)


def with_ids(spec: ModelSpec, graphs: list[ir.Model]) -> ModelSpec:
    """The spec whose conditions tell what was noted at these graphs' inputs."""
    rows: dict[str, int] = {}
    for value in (value for model in graphs for value in model.graph.inputs):
        if IDS in value.metadata_props:
            name, number = str(value.name), int(value.metadata_props[IDS])
            rows[name] = min(number, rows.get(name, number))

    def told(conditions: Mapping[str, Condition]) -> dict[str, Condition]:
        return {
            name: replace(one, ids=rows[name]) if name in rows and not 0 < one.limit <= rows[name] else one
            for name, one in conditions.items()
        }

    inputs = replace(spec.inputs, conditions=told(spec.inputs.conditions))
    return replace(spec, inputs=inputs, raw=told(spec.raw))
