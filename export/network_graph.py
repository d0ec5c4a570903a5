"""PyTorch exports of the denoiser, its noise level an input, and of the stages before and behind the loop."""

import contextlib
import copy
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from torch import Tensor, nn

from edge_sampler.export.captured import open_blocks
from edge_sampler.export.check import DOUBTFUL, check_nodes, doubtful
from edge_sampler.export.exact import exact_constants, make_exact
from edge_sampler.export.ids import hold_ids, note
from edge_sampler.export.inline import inline
from edge_sampler.export.lower import compute_in_single_precision
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks.layers import attention_joined
from edge_sampler.models.onnx_graph import OnnxGraph
from edge_sampler.runtime.condition import Axis, Condition, Shape, axis_in, number_of
from edge_sampler.runtime.errors import UserError

OPSET = 21  # the first in which GroupNormalization is one node that engines take
BATCH = "batch"  # what graphs call their first axis
FIXED = re.compile(r"marked (?:\d+\*_)?(\S+) as dynamic but your code specialized it to be a constant \((\d+)\)")
STEPS = re.compile(r"^  (\w+) = (\d+)\*_\1$", re.MULTILINE)
SUGGESTED = re.compile(r"^  (\w+ = .+)$", re.MULTILINE)


class Positional(nn.Module):
    """The denoiser with its conditions by place: torch.export of 2.13 stumbles over those by name."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, x: Tensor, sigma: Tensor, *told: Tensor) -> Any:
        return self.model(x, sigma, **dict(zip(self.names, told, strict=True))).float()


def steps_of(name: str, axis: Axis) -> Any:
    """What torch.export calls how many steps an axis has."""
    least, largest = axis.least // axis.step, axis.largest // axis.step
    return torch.export.Dim(name if axis.step == 1 else f"_{name}", min=least, max=largest)


class Examples:
    """Examples of a graph's inputs, and which of their sizes a call chooses.

    torch.export looks at sizes and types alone. A size of 1 it would take for a constant.
    """

    def __init__(self, axes: Mapping[str, Axis]) -> None:
        self.axes = axes
        self.sizes = {name: min(max(2 * axis.step, axis.usual), axis.largest) for name, axis in axes.items()}
        self.steps = {name: steps_of(name, axis) for name, axis in axes.items() if axis.least < axis.largest}
        self.examples: dict[str, Tensor] = {}
        self.dynamic: dict[str, dict[int, Any]] = {}
        self.shapes: dict[str, Shape] = {}

    def add(self, name: str, shape: Shape, dtype: str = "float32") -> None:
        """One [batch, *shape]."""
        sizes = [number_of(size, self.sizes) for size in shape]
        self.examples[name] = torch.zeros(2, *sizes, dtype=getattr(torch, dtype))
        named = {}
        for place, size in enumerate(shape, 1):
            times, axis = axis_in(str(size))
            if axis in self.steps:
                times *= self.axes[axis].step
                named[place] = self.steps[axis] if times == 1 else times * self.steps[axis]
        # No Dim for the batch: diffusers' upsampling asks whether there are 64 samples, only to copy them.
        self.dynamic[name] = {0: torch.export.Dim.DYNAMIC, **named}
        self.shapes[name] = (BATCH, *shape)

    def of(self, module: nn.Module, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The module's arguments by name, of these sizes, without values."""
        sizes = {**sizes, BATCH: 2}
        shapes = [[number_of(size, sizes) for size in self.shapes.get(name, ())] for name in self.examples]
        made = [torch.empty(shape, device="meta") for shape in shapes]
        return inspect.signature(module.forward).bind(*made).arguments

    def add_conditions(self, conditions: Mapping[str, Condition]) -> None:
        for name, condition in conditions.items():
            self.add(name, condition.shape, condition.dtype)


def export_denoiser(model: Denoiser) -> ir.Model:
    """Graph: x float32 [batch, *shape], sigma float32 [], each condition [batch, *its shape] → denoised, as x.

    The weights are the model's own tensors, not copies, where it is on the CPU. Raises UserError for a network that
    fixes the size of the batch or of an axis with a name, and for one that decides by values.
    """
    spec, inputs = model.spec, Examples(model.spec.inputs.axes)
    inputs.add("x", spec.inputs.shape)
    inputs.examples["sigma"], inputs.dynamic["sigma"] = torch.tensor(1.0), {}
    inputs.add_conditions(spec.inputs.conditions)
    x, sigma, *told = inputs.dynamic.values()
    dynamic = (x, sigma, tuple(told)) if told else (x, sigma)
    return export(
        Positional(on_cpu(model), list(spec.inputs.conditions)),
        inputs,
        dynamic,
        ["denoised"],
        spec.name,
        spec.inputs.axes,
    )


def export_encoder(model: Denoiser) -> ir.Model | None:
    """Graph: what the caller gives, [batch, …] each → the conditions that the encoder makes; None without one."""
    if model.encoder is None:
        return None
    spec, inputs = model.spec, Examples(model.spec.inputs.axes)
    inputs.add_conditions(spec.raw)
    dynamic = (tuple(inputs.dynamic.values()),)
    return export(
        AsGiven(on_cpu(model.encoder)), inputs, dynamic, spec.made, f"{spec.name}'s encoder", spec.inputs.axes
    )


def export_decoder(model: Denoiser) -> ir.Model | None:
    """Graph: x float32 [batch, *shape] → what the sampler makes; None for a model whose x is that."""
    if model.decoder is None:
        return None
    spec, inputs = model.spec, Examples(model.spec.inputs.axes)
    inputs.add("x", spec.inputs.shape)
    dynamic, made = (tuple(inputs.dynamic.values()),), [spec.output.name]
    return export(AsGiven(on_cpu(model.decoder)), inputs, dynamic, made, f"{spec.name}'s decoder", spec.inputs.axes)


class AsGiven(nn.Module):
    """A stage: its arguments' names are its own affair."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *values: Tensor) -> Any:
        return self.module(*values)


def on_cpu(module: nn.Module) -> nn.Module:
    """The module, or a copy of it: graphs are made on the CPU."""
    tensors = [*module.parameters(), *module.buffers()]
    return module if all(tensor.device.type == "cpu" for tensor in tensors) else copy.deepcopy(module).cpu()


def export(
    module: nn.Module,
    inputs: Examples,
    dynamic: tuple[Any, ...],
    outputs: Sequence[str],
    who: str,
    axes: Mapping[str, Axis],
) -> ir.Model:
    """One PyTorch export. ``dynamic`` are ``inputs.dynamic`` as the module's arguments nest them."""
    if taken := sorted(set(inputs.examples) & set(outputs)):
        raise UserError(f"{who} takes a condition called {taken[0]!r}, as what it makes is: give it another name")
    with warnings.catch_warnings(), silence(), quiet_logs("torch"), attention_joined(module), exact_constants():
        warnings.simplefilter("ignore")
        examples = tuple(inputs.examples.values())
        try:
            captured = torch.export.export(module, examples, dynamic_shapes=dynamic, strict=False)
            doubted = doubtful(captured, lambda sizes: inputs.of(module, sizes), axes)
            open_blocks(captured)
            rows = hold_ids(captured)
            make_exact(captured)
            program = torch.onnx.export(
                captured,
                input_names=list(inputs.examples),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # each part of PyTorch raises its own
            scripted = any(isinstance(one, torch.jit.ScriptModule) for one in module.modules())
            advice = ": PyTorch exports nothing of torch.jit.script; give the network that it was made of" * scripted
            raise UserError(f"{reason(error, who, axes)}{advice}") from error
    assert program is not None
    exported = program.model
    name_sizes(exported, inputs)
    inline(exported, (one for one in module.modules() if isinstance(one, OnnxGraph)), OPSET)
    for node in exported.graph:
        for value in node.outputs:
            if value.name in inputs.examples:  # the exporter has named it so
                value.name = f"{value.name}@"
    check_nodes(exported.graph, who)
    for value in exported.graph.outputs:
        if value.shape is None or str(value.shape[0]) != BATCH:
            raise UserError(fixed_batch(who))
    compute_in_single_precision(exported.graph)
    if any(value.dtype == ir.DataType.BFLOAT16 for node in exported.graph for value in node.outputs):
        raise UserError(
            f"{who} computes in bfloat16, which ONNX Runtime does not on a CPU: let it compute in float32, and add "
            "--precision bf16"
        )
    DeduplicateInitializersPass()(exported)
    ClearMetadataAndDocStringPass()(exported)  # about 1.3 KB a node
    note(exported.graph, rows)
    exported.meta[DOUBTFUL] = doubted
    exported.graph.name = "denoiser"
    exported.producer_name, exported.producer_version = "edge-sampler", None
    return exported


def fixed_batch(who: str) -> str:
    return (
        f"{who} computes with a fixed number of images, so that its graph takes no other: let its forward use "
        "x.shape[0] instead of len(x), and make no Python number of it"
    )


def reason(error: Exception, who: str, axes: Mapping[str, Axis]) -> str:
    """In one line, why PyTorch exported nothing."""
    said = str(error)
    for fixed, size in FIXED.findall(said):
        if fixed not in axes:
            return fixed_batch(who)
        return (
            f"{who} fixes {fixed} to {size}, though it is to be {axes[fixed]}: let its forward use x.shape, and no "
            "operator whose export fixes a size, such as torch.nn.GRU and max_pool1d"
        )
    if "Constraints violated" in said:
        wanted = ", ".join(f"{name} {axis}" for name, axis in axes.items())
        takes = "; ".join(SUGGESTED.findall(said)) or said.splitlines()[1].strip(" -")
        steps = ", ".join(f"{name} a step of {step}" for name, step in STEPS.findall(said))
        advice = f"; give {steps}" if steps else ""
        return f"{who} does not take every size that it is to take, {wanted}: PyTorch finds {takes}{advice}"
    if "data-dependent" in said:
        return (
            f"{who} decides by the values of its input ({where(error)}), which no graph can hold: compute both and let "
            "torch.where choose"
        )
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{who} cannot be exported ({where(error)}): {type(error).__name__}: {(lines or [''])[0]}"


def where(error: Exception) -> str:
    """file:line of the caller's code that failed, as far as Python knows."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    own = [frame for frame in frames if "in __torch_function__" not in frame.name]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "inside PyTorch"


def name_sizes(exported: ir.Model, inputs: Examples) -> None:
    """Calls sizes, and multiples of them, by their names instead of PyTorch's symbols."""
    names: dict[str, tuple[int, str]] = {}  # by symbol: how many of it a size of that name is
    for value, (name, places) in zip(exported.graph.inputs, inputs.dynamic.items(), strict=True):
        for place in places:
            assert value.shape is not None
            step, symbol = axis_in(str(value.shape[place]))
            times, axis = axis_in(str(inputs.shapes[name][place]))
            names[symbol] = step // times, axis

    def named(size: ir.SymbolicDim | int) -> ir.SymbolicDim | int | str:
        times, symbol = axis_in(str(size))
        step, name = names.get(symbol, (0, ""))
        if not step or times % step:
            return size
        return name if times == step else f"{times // step}*{name}"

    for graph in exported.graphs():
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None:
                value.shape = ir.Shape(map(named, value.shape))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """PyTorch prints what it captured before it fails."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet_logs(name: str) -> Iterator[None]:
    """The exporter warns of optional packages that nobody here misses."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
