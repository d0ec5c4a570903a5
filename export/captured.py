"""What values of a captured program are made of, and its blocks that compute as if they were none."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from operator import getitem
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

ATEN, HIGHER = torch.ops.aten, torch.ops.higher_order
OF_SIZES = {  # what makes values of others' sizes alone
    getattr(ATEN, name)
    for name in ("empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
}


def graphs_of(program: ExportedProgram) -> Iterator[tuple[Graph, set[str]]]:
    """The program's graph with the names of its inputs, then those of blocks, to which weights are inputs too."""
    yield program.graph, set(program.graph_signature.user_inputs)
    for name, module in program.graph_module.named_modules():
        if name and isinstance(module, GraphModule):
            yield module.graph, {node.name for node in module.graph.find_nodes(op="placeholder")}


def ends_of(node: Node, through: Callable[[Node], bool]) -> set[Node]:
    """What a value is made of by way of such nodes alone: inputs, weights, and nodes that are not such."""
    found, seen, open_ends = set(), {node}, [node]
    while open_ends:
        one = open_ends.pop()
        if one.op != "placeholder" and through(one):
            new = set(one.all_input_nodes) - seen
            seen |= new
            open_ends += new
        else:
            found.add(one)
    return found


def is_made_of(node: Node, inputs: set[str]) -> bool:
    """Whether a value depends on the values of these inputs, and not on their sizes alone."""
    return any(one.name in inputs for one in ends_of(node, takes_values))


def takes_values(node: Node) -> bool:
    is_size = isinstance(node.meta.get("val"), int | SymInt | SymFloat | SymBool)
    return not is_size and getattr(node.target, "overloadpacket", None) not in OF_SIZES


def replacing(program: ExportedProgram) -> AbstractContextManager[Any]:
    """Inside, the program's outputs stay those of its graph when a node takes another's place."""
    return program.graph_module._set_replace_hook(program.graph_signature.get_replace_hook())


def put(beside: Node, target: Any, *arguments: Any) -> Node:
    """A new node in the graph of another one, where that inserts; what it makes is known as of those captured."""
    made = beside.graph.call_function(target, arguments)
    made.meta["val"] = target(*(one.meta["val"] if isinstance(one, Node) else one for one in arguments))
    return made


def replace_unless(right: Node, node: Node, value: float) -> None:
    """Puts a value in the place of the node's own, wherever it is not right."""
    with node.graph.inserting_after(node):
        chosen = put(node, ATEN.where.ScalarOther, right, node, value)
    replace_by(node, chosen)


def replace_by(node: Node, made: Node) -> None:
    """Gives the node's users a value that is made of it."""
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


def open_blocks(program: ExportedProgram) -> None:
    """Puts what ``with torch.no_grad():`` and the like hold in the place of the block."""
    with replacing(program):
        open_within(program.graph_module)


def open_within(module: GraphModule) -> None:
    for block in filter(is_idle, list(module.graph.nodes)):
        held, *given = (value for value in block.args if isinstance(value, Node))
        body = getattr(module, str(held.target))
        open_within(body)
        if body.graph.find_nodes(op="get_attr"):  # it holds a block that is not idle
            continue
        known = dict(zip(body.graph.find_nodes(op="placeholder"), given, strict=True))
        with module.graph.inserting_before(block):
            made = module.graph.graph_copy(body.graph, known)
        for user in list(block.users):
            assert user.target is getitem, user
            user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
            module.graph.erase_node(user)
        module.graph.erase_node(block)
        module.graph.erase_node(held)
        module.delete_submodule(str(held.target))


def is_idle(node: Node) -> bool:
    """Whether it is a block without an effect: graphs have no gradients, and casts of another device are none here."""
    if node.target is HIGHER.wrap_with_set_grad_enabled:
        return True
    return node.target is HIGHER.wrap_with_autocast and (node.args[0] != "cpu" or not node.args[2])
