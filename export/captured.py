"""What a captured program's values come from."""

from collections.abc import Callable

import torch


def inputs_of(node: torch.fx.Node, through: Callable[[torch.fx.Node], bool]) -> set[str]:
    """The names of the program's inputs and weights that a value is made of, by way of such nodes alone."""
    found, seen, open_ends = set(), {node}, [node]
    while open_ends:
        one = open_ends.pop()
        if one.op == "placeholder":
            found.add(one.name)
        elif through(one):
            new = set(one.all_input_nodes) - seen
            seen |= new
            open_ends += new
    return found
