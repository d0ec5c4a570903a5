"""Whether a model's graphs compute what PyTorch does at other sizes of the named axes than the usual ones.

An export may fix what depends on a size, and say nothing: adaptive pooling to 2 places becomes pooling of so many
values each. At the usual size a bundle's reference would not show it.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
import torch

from edge_sampler.export.save import save_checked
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.probe import levels, one_line_of, values_of
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Axis, Shape, axis_in, number_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.scratch import scratch

TOLERANCE = 1e-3  # relative
GROWTH, PLACES = 2, 1024  # places of all named axes: so many times the usual ones, or so many in all, are tried at most

Arrays = dict[str, np.ndarray]


def check_sizes(model: Denoiser, denoiser: ir.Model, encoder: ir.Model | None, decoder: ir.Model | None) -> None:
    """Asks PyTorch and the graphs for one answer at the least sizes and at the largest, or as large as is cheap.

    Raises UserError where the network fails there, and where a graph's answer is another one.
    """
    spec, wanted = model.spec, model.spec.called_with.conditions
    for sizes in tried(spec.inputs.axes):
        raw = {name: resized(value[:1], wanted[name].shape, sizes) for name, value in values_of(model).items()}
        at = ", ".join(f"{name} {size}" for name, size in sizes.items())
        unit, sigma = unit_noise([0], spec.inputs.sized(sizes=sizes)), levels(spec)[1]
        x = (sigma * unit).astype(np.float32)
        with one_line_of(f"{spec.name} fails at {at}, so give axes sizes that it takes"), torch.inference_mode():
            told = model.encode(raw)
            denoised = model(torch.from_numpy(x), sigma, **told).float().numpy()
            made = model.decode(torch.from_numpy(unit)).numpy()
        if not np.isfinite(denoised).all() or not np.isfinite(made).all():
            raise UserError(f"{spec.name} makes NaN or infinity at {at}, so give axes sizes that it takes")
        conditions = {name: value.numpy() for name, value in told.items()}
        encoded, given = {name: conditions[name] for name in spec.made}, {name: raw[name] for name in spec.raw}
        check_graph(encoder, given, encoded, f"{spec.name}'s encoder", at)
        given = {"x": x, "sigma": np.array(sigma, np.float32), **conditions}
        check_graph(denoiser, given, {"denoised": denoised}, spec.name, at)
        check_graph(decoder, {"x": unit}, {spec.output.name: made}, f"{spec.name}'s decoder", at)


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


def resized(value: np.ndarray, shape: Shape, sizes: Mapping[str, int]) -> np.ndarray:
    """A condition [1, …] cut, or repeated, to these sizes of axes."""
    for place, size in enumerate(shape, 1):
        if isinstance(size, str) and axis_in(size)[1] in sizes:
            value = np.take(value, np.arange(number_of(size, sizes)) % value.shape[place], place)
    return value


def check_graph(graph: ir.Model | None, given: Arrays, expected: Arrays, who: str, at: str) -> None:
    """Raises UserError where the graph does not compute what is expected of it."""
    if graph is None:
        return
    with scratch() as folder:
        save_checked(graph, folder / "graph.onnx")
        with Session(folder / "graph.onnx") as session:
            try:
                found = session.run(given)
            except UserError as error:
                raise UserError(f"{advice(who, at)}: {error}") from error
    for name, value in expected.items():
        off = np.abs(found[name] - value).max() if found[name].shape == value.shape else np.inf
        if not off <= TOLERANCE * np.abs(value).max():
            raise UserError(f"{advice(who, at)}: {name} is off by {off:.1e}")


def advice(who: str, at: str) -> str:
    return (
        f"{who}'s graph is not what PyTorch computes at {at}: PyTorch's export fixes what depends on a size, such as "
        "adaptive pooling to several places; let the network compute it in another way, or give the axis one size"
    )
