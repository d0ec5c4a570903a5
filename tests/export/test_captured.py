"""Captured programs: what values are made of, and blocks such as torch.no_grad's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edge_sampler.export.captured import graphs_of, is_made_of, open_blocks

SIZES = {0: torch.export.Dim.DYNAMIC}


class Calls(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.weight)


def captured(function: Callable[[Tensor], Tensor]) -> ExportedProgram:
    return torch.export.export(Calls(function), (torch.rand(2, 4),), dynamic_shapes=(SIZES,), strict=False)


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x.tanh()


def halves(x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return (x @ x.T).float()


def two(x: Tensor) -> Tensor:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        made = x.exp()
    with torch.no_grad():
        return made.sin() + x.cos()


def mixed(x: Tensor) -> Tensor:
    with torch.no_grad():
        first = halves(x).sum(1, keepdim=True)
    with torch.no_grad():
        return first + x.sin()


@pytest.mark.parametrize(
    ("function", "blocks"),
    [
        (torch.tanh, 0),
        (no_grad, 0),
        (torch.autocast("cuda", enabled=False)(torch.tanh), 0),
        (torch.autocast("cpu", torch.bfloat16, enabled=False)(torch.tanh), 0),
        (two, 0),
        (halves, 1),  # which is computed otherwise outside
        (mixed, 2),  # one of no effect holds it
    ],
)
def test_blocks_of_no_effect_are_opened(function: Callable[[Tensor], Tensor], blocks: int) -> None:
    program, x = captured(function), torch.rand(3, 4)
    expected = program.module()(x)
    open_blocks(program)
    program.graph_module.graph.lint()
    program.graph_module.recompile()
    assert len([*graphs_of(program)]) == 1 + blocks
    assert len([*program.graph_module.modules()]) == 1 + blocks
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=0)
    assert program.graph_signature.user_outputs == tuple(
        one.name for one in program.graph.output_node().all_input_nodes
    )


@pytest.mark.parametrize(
    ("function", "made"),
    [
        (lambda x: x[:, :2].tanh(), True),
        (lambda x: torch.stack(torch.unbind(x, 1)), True),
        (lambda x: torch.zeros_like(x), False),
        (lambda x: x.new_ones(x.shape[0], 4), False),
        (lambda x: torch.arange(x.shape[0]).float(), False),
        (lambda x: x.shape[0] * torch.ones(x.shape[0]), False),
    ],
)
def test_values_of_inputs_are_not_their_sizes(function: Callable[[Tensor], Tensor], made: bool) -> None:
    program = captured(function)
    ((graph, inputs),) = graphs_of(program)
    assert inputs == {"x"}
    (returned,) = graph.output_node().all_input_nodes
    assert is_made_of(returned, inputs) is made


def test_a_block_takes_weights_as_it_takes_inputs() -> None:
    program = captured(halves)
    (_, outer), (_, inner) = graphs_of(program)
    assert outer == {"x"}
    assert len(inner) == 1
