"""Whether a model's graphs are sound: valid, and what PyTorch computes, also at unusual sizes of the named axes.

An export may fix what depends on a size, and say nothing: adaptive pooling to 2 places becomes pooling of so many
values each. At the usual size a bundle's reference would not show it. A user's network is tried at that size too, so
that an export which fails does so before a fit.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from random import Random
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx.checker import ValidationError
from onnx.shape_inference import InferenceError
from torch.export import ExportedProgram

from edge_sampler.export.save import check, save_checked
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.probe import Rounding, drawn, levels, one_line_of
from edge_sampler.models.unchanged import is_adapted
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Axis, Shape, axis_in, number_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.scratch import scratch

GROWTH, PLACES = 2, 1024  # places of all named axes: so many times the usual ones, or so many in all, are tried at most
SEVERAL = 4096  # sizes that guards are asked about
DOUBTFUL = "doubtful"  # of a graph's metadata, which no file holds

Arrays = dict[str, np.ndarray]
Sizes = list[dict[str, int]]


def check_graphs(model: Denoiser, denoiser: ir.Model, encoder: ir.Model | None, decoder: ir.Model | None) -> None:
    """Asks PyTorch and the graphs for one answer at the least sizes and at the largest, or as large as is cheap.

    Raises UserError for a graph that is not valid, where the network fails there, and where a graph's answer is another
    one.
    """
    spec, wanted = model.spec, model.spec.called_with.conditions
    for graph, who in ((denoiser, ""), (encoder, "'s encoder"), (decoder, "'s decoder")):
        check_valid(graph, f"{spec.name}{who}")
    (one, *_), _ = drawn(model)
    usual = {name: axis.usual for name, axis in spec.inputs.axes.items()}
    doubted = [sizes for graph in (denoiser, encoder, decoder) if graph for sizes in graph.meta.get(DOUBTFUL, ())]
    for sizes in (*[usual] * is_adapted(model), *tried(spec.inputs.axes), *doubted):
        raw = {name: resized(value, wanted[name].shape, sizes) for name, value in one.items()}
        at = "" if sizes == usual else " at " + ", ".join(f"{name} {size}" for name, size in sizes.items())
        unit, sigma = unit_noise([0], spec.inputs.sized(sizes=sizes)), levels(spec)[1]
        x = (sigma * unit).astype(np.float32)
        with one_line_of(f"{spec.name} fails{at}, so give axes sizes that it takes"):
            with torch.inference_mode(), Rounding() as rounding:
                told = model.encode(raw)
                denoised = model(torch.from_numpy(x), sigma, **told).float().numpy()
                made = model.decode(torch.from_numpy(unit)).numpy()
        if not np.isfinite(denoised).all() or not np.isfinite(made).all():
            if sizes == usual:  # as a fit will tell, if these are not only the probe's conditions
                continue
            raise UserError(f"{spec.name} makes NaN or infinity{at}, so give axes sizes that it takes")
        conditions = {name: value.numpy() for name, value in told.items()}
        encoded, given = {name: conditions[name] for name in spec.made}, {name: raw[name] for name in spec.raw}
        check_graph(encoder, given, encoded, rounding, f"{spec.name}'s encoder", at)
        given = {"x": x, "sigma": np.array(sigma, np.float32), **conditions}
        check_graph(denoiser, given, {"denoised": denoised}, rounding, spec.name, at)
        check_graph(decoder, {"x": unit}, {spec.output.name: made}, rounding, f"{spec.name}'s decoder", at)


def check_nodes(graph: ir.Graph, who: str) -> None:
    """Raises UserError for nodes that no graph of a sampler holds."""
    for node in graph:
        if any(one.type == ir.AttributeType.GRAPH for one in node.attributes.values()):
            raise UserError(
                f"{who} runs a part of itself for some values only ({node.op_type}), which no graph of a sampler "
                "holds: compute both and let torch.where choose"
            )
        if any(isinstance(value.type, ir.SequenceType) for value in node.outputs):
            raise UserError(
                f"{who} makes lists of tensors ({node.op_type}), which no graph of a sampler holds: in place of "
                "torch.nn.EmbeddingBag, let it look ids up with torch.nn.Embedding and take their mean"
            )


def check_valid(graph: ir.Model | None, who: str) -> None:
    """Raises UserError where ONNX's own check refuses it."""
    try:
        if graph is not None:
            check(graph)
    except (ValidationError, InferenceError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"PyTorch's export of {who} is no valid graph: {said:.300}") from error


def tried(axes: Mapping[str, Axis]) -> Iterator[dict[str, int]]:
    """All least sizes, and for each axis the largest that ``GROWTH`` and ``PLACES`` allow, where they are unusual."""
    usual = {name: axis.usual for name, axis in axes.items()}
    growth = max(GROWTH, PLACES / math.prod(usual.values()))
    large = {name: min(axis.largest, int(axis.usual * growth) // axis.step * axis.step) for name, axis in axes.items()}
    for sizes in (
        {name: axis.least for name, axis in axes.items()},
        *(usual | {name: size} for name, size in large.items()),
    ):
        if sizes != usual:
            yield sizes


def doubtful(program: ExportedProgram, inputs: Callable[[Mapping[str, int]], Any], axes: Mapping[str, Axis]) -> Sizes:
    """Sizes at which the network may take another way than its program: for each of its guards the least that fail it.

    ``inputs`` makes the arguments of these sizes by name, on PyTorch's meta device.
    """
    found, guards = [], list(getattr(program, "_guards_code", ()))
    for sizes in several(axes) if guards else ():
        named = {"L": inputs(sizes)}
        failed = [guard for guard in guards if not eval(guard, named)]
        if failed:
            found.append(sizes)
            guards = [guard for guard in guards if guard not in failed]
    return found


def several(axes: Mapping[str, Axis]) -> Sizes:
    """All sizes, or so many that are drawn, the smallest first; none that takes long to try."""
    most = max(PLACES, GROWTH * math.prod(axis.usual for axis in axes.values()))
    known = [range(axis.least, min(axis.largest, most) + 1, axis.step) for axis in axes.values()]
    if math.prod(map(len, known)) <= SEVERAL:
        chosen = [*product(*known)]
    else:
        draw = Random(0)
        chosen = [tuple(map(draw.choice, known)) for _ in range(SEVERAL)]
    chosen = sorted((sizes for sizes in chosen if math.prod(sizes) <= most), key=math.prod)
    return [dict(zip(axes, sizes, strict=True)) for sizes in chosen]


def resized(value: np.ndarray, shape: Shape, sizes: Mapping[str, int]) -> np.ndarray:
    """A condition [1, …] cut, or repeated, to these sizes of axes."""
    for place, size in enumerate(shape, 1):
        if isinstance(size, str) and axis_in(size)[1] in sizes:
            value = np.take(value, np.arange(number_of(size, sizes)) % value.shape[place], place)
    return value


def check_graph(graph: ir.Model | None, given: Arrays, expected: Arrays, rounding: Rounding, who: str, at: str) -> None:
    """Raises UserError where the graph does not compute what is expected of it."""
    if graph is None:
        return
    with scratch() as folder:
        save_checked(graph, folder / "graph.onnx", inline_limit=0)  # so that ONNX Runtime maps the weights
        with Session(folder / "graph.onnx") as session:
            try:
                found = session.run(given)
            except UserError as error:
                raise UserError(f"{advice(who, at)}: {error}") from error
    for name, value in expected.items():
        off = np.abs(np.subtract(found[name], value, dtype=float)).max() if found[name].shape == value.shape else np.inf
        allowed = rounding.allowed if value.dtype.kind == "f" else 0  # masks and ids are exact
        if not off <= allowed * np.abs(value).max():
            raise UserError(f"{advice(who, at)}: {name} is off by {off:.1e}")


def advice(who: str, at: str) -> str:
    other = "let the network compute it in another way"
    if at:
        other = (
            "PyTorch's export fixes what depends on a size, such as adaptive pooling to several places; "
            f"{other}, or give the axis one size"
        )
    return f"{who}'s graph is not what PyTorch computes{at}: {other}"
