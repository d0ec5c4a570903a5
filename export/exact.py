"""Where PyTorch's exporter writes something else than PyTorch computes: a captured program is changed before."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from onnxscript.rewriter._pattern_ir import Constant
from torch.export import ExportedProgram

from edge_sampler.export.captured import ATEN, graphs_of, is_made_of, put, replace_by, replace_unless, replacing


@contextmanager
def exact_constants() -> Iterator[None]:
    """The exporter's patterns take 1e-8 for the 0 of x + 0, and 1.00001 for the 1 of x * 1; here they match exactly."""
    none = property(lambda _: 0.0, lambda _, value: None)
    with patch.multiple(Constant, _rel_tol=none, _abs_tol=none, create=True):
        yield


def make_exact(program: ExportedProgram) -> None:
    """Changes a program in place, to one whose export computes what PyTorch does."""
    with replacing(program):
        for graph, inputs in graphs_of(program):
            for node in list(graph.nodes):
                if node.target is ATEN.squeeze.dim:
                    drop_if_idle(node)
                elif node.target is ATEN.scaled_dot_product_attention.default:
                    zero_what_sees_nothing(node, inputs)
                    give_heads(node)
                elif node.target is ATEN.log_sigmoid.default:
                    compute_stably(node)
                elif node.target is ATEN.index.Tensor:
                    widen_indices(node)
                elif node.target is ATEN.clamp.default and node.meta["val"].is_floating_point():
                    node.args = tuple(float(bound) if isinstance(bound, int) else bound for bound in node.args)
                elif node.target is ATEN.to.dtype and node.args[1] == torch.float64 and is_made_of(node, inputs):
                    make_large_nan(node)


def drop_if_idle(node: torch.fx.Node) -> None:
    """PyTorch leaves an axis alone that is not of size 1; the Squeeze that it exports would not."""
    size = node.args[0].meta["val"].shape[node.args[1]]  # type: ignore[union-attr]
    if isinstance(size, int) and size != 1:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)


def zero_what_sees_nothing(node: torch.fx.Node, inputs: set[str]) -> None:
    """Attention whose mask hides all keys is 0 in PyTorch; the graph's would be the mean of what is hidden.

    Masks that depend on no input are left alone: causal ones hide no row.
    """
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if not isinstance(mask, torch.fx.Node) or not is_made_of(mask, inputs):
        return
    with node.graph.inserting_before(node):  # in operators that every engine library has
        if mask.meta["val"].dtype != torch.bool:
            mask = put(node, ATEN.gt.Scalar, mask, -math.inf)
        counted = put(node, ATEN.to.dtype, mask, torch.float32)
        keys = put(node, ATEN.sum.dim_IntList, counted, [-1], True)
        sees = put(node, ATEN.gt.Scalar, keys, 0)
    replace_unless(sees, node, 0.0)


def give_heads(node: torch.fx.Node) -> None:
    """Attention without an axis of heads gets one: the exporter takes no other."""
    names = ("query", "key", "value", "attn_mask")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    if given["query"].meta["val"].ndim != 3:  # type: ignore[union-attr]
        return
    for name in names:
        one = given.get(name)
        if isinstance(one, torch.fx.Node) and one.meta["val"].ndim == 3:
            with node.graph.inserting_before(node):
                node.replace_input_with(one, put(node, ATEN.unsqueeze.default, one, 1))
    node.meta["val"] = node.meta["val"].unsqueeze(1)
    with node.graph.inserting_after(node):
        without = put(node, ATEN.squeeze.dim, node, 1)
    replace_by(node, without)


def make_large_nan(node: torch.fx.Node) -> None:
    """Graphs compute float64 as float32, which holds whole numbers up to 2**24: of larger ones they make NaN."""
    whole = node.args[0]
    if whole.meta["val"].is_floating_point():  # type: ignore[union-attr]
        return
    with node.graph.inserting_before(node):
        size = put(node, ATEN.abs.default, whole)
        held = put(node, ATEN.le.Scalar, size, 2**24)
    replace_unless(held, node, math.nan)


def compute_stably(node: torch.fx.Node) -> None:
    """log(sigmoid(x)) as -softplus(-x): ONNX Runtime's sigmoid is 0 from -18 down."""
    with node.graph.inserting_before(node):
        turned = put(node, ATEN.neg.default, node.args[0])
        softplus = put(node, ATEN.softplus.default, turned)
        stable = put(node, ATEN.neg.default, softplus)
    node.replace_all_uses_with(stable)
    node.graph.erase_node(node)


def widen_indices(node: torch.fx.Node) -> None:
    """ONNX gathers by indices of 64 bits alone."""
    table, indices = node.args
    wide = []
    for one in indices:  # type: ignore[union-attr]
        if isinstance(one, torch.fx.Node) and one.meta["val"].dtype == torch.int32:
            with node.graph.inserting_before(node):
                one = put(node, ATEN.to.dtype, one, torch.int64)
        wide.append(one)
    node.args = (table, wide)
