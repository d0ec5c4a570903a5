"""An ONNX graph as a PyTorch module: ONNX Runtime runs it, and an export takes it in as it is."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from edge_sampler.models.spec import digest
from edge_sampler.runtime.backends.base import resident_memory
from edge_sampler.runtime.backends.onnxrt import CPU, CUDA, Session
from edge_sampler.runtime.condition import Shape, axis_in, number_of, sizes_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.verified import file_sha256

DOMAIN = "edge_sampler.graphs"  # of the nodes that stand for graphs while PyTorch exports
DTYPES = {1: "float32", 7: "int64", 9: "bool"}  # by their numbers in onnx.proto


class OnnxGraph(nn.Module):
    """``graph(*inputs)``, [n, …] or [] each, in the graph's order, on one device → its outputs, a tuple, [n, …] each.

    It runs where the module is: ``to("cuda")`` takes ONNX Runtime's CUDA provider. While PyTorch exports, a call is
    one node of ``DOMAIN``, for which export/inline.py puts the graph.

    Args:
        path: of an ONNX file, its weights in it or in files beside it.

    ``inputs`` and ``outputs`` are what the graph declares, by name: a dtype, and a shape with the first axis, of
    samples; a name in it is an axis of any size. ``sha256`` is of the file, and of those of its weights. ``few_bits``:
    whether some of these have less than 32.

    Raises UserError for what is no ONNX file, or one that ONNX Runtime cannot load, for weights not beside it, and for
    sparse ones.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = read(path)
        weights = {one.name for one in model.graph.initializer}
        self.path = path
        self.inputs = declared(path, [one for one in model.graph.input if one.name not in weights])
        self.outputs = declared(path, model.graph.output)
        files = [path, *weights_files(path, model)]
        hashes = [file_sha256(file) for file in files]
        self.sha256 = hashes[0] if len(hashes) == 1 else digest(hashes)
        self.weights_bytes = sum(file.stat().st_size for file in files)
        dtypes = {onnx.helper.tensor_dtype_to_np_dtype(one.data_type) for one in model.graph.initializer}
        self.few_bits = any(dtype.kind != "b" and dtype.itemsize < 4 for dtype in dtypes)
        self.numbers = sum(int(torch.Size(one.dims).numel()) for one in model.graph.initializer)
        self.sample_bytes = 0  # that a run takes for one sample; known after the first
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # is where the module is
        self.session = self.opened()

    @property
    def op_type(self) -> str:
        """Of the nodes that stand for it."""
        return f"graph_{self.sha256[:16]}"

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        if torch.compiler.is_exporting():
            return self.symbol(values)
        feed = {name: value.cpu().numpy() for name, value in zip(self.inputs, values, strict=True)}
        before = resident_memory()
        found = self.session.run(feed)
        if not self.sample_bytes:
            samples = next(len(value) for value in values if value.dim())
            self.sample_bytes = max(1, (resident_memory() - before) // samples)
        return tuple(torch.from_numpy(found[name]).to(self.place.device) for name in self.outputs)

    def symbol(self, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What stands for a run in an export: outputs of the right types and sizes."""
        sizes: dict[str, Any] = {}
        for (_, shape), value in zip(self.inputs.values(), values, strict=True):
            sizes |= sizes_of(shape, value.shape)
        samples = next(value.shape[0] for value in values if value.dim())
        dtypes, shapes = list[torch.dtype](), list[list[Any]]()
        for name, (dtype, (_, *made)) in self.outputs.items():
            if unknown := [axis for axis in made if isinstance(axis, str) and axis_in(axis)[1] not in sizes]:
                raise UserError(f"{self.path}: the size of {name} along {unknown[0]!r} is none of its inputs'")
            dtypes.append(getattr(torch, dtype))
            shapes.append([samples, *(number_of(axis, sizes) for axis in made)])
        stands_for_it = f"{DOMAIN}::{self.op_type}"
        return tuple(torch.onnx.ops.symbolic_multi_out(stands_for_it, values, dtypes=dtypes, shapes=shapes, version=1))

    def _apply(self, *arguments: Any, **named: Any) -> "OnnxGraph":
        """Moves the module, and opens the graph where it is then."""
        before = self.place.device
        super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        if self.place.device != before:
            self.session = self.opened()
        return self

    def opened(self) -> Session:
        provider = CUDA if self.place.device.type == "cuda" else CPU
        try:
            return Session(self.path, (), provider)
        except UserError as error:
            raise UserError(f"{error}{'; --device cpu does without a GPU' * (provider is CUDA)}") from error


def read(path: Path) -> onnx.ModelProto:
    """An ONNX file without the weights that are beside it. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(f"no ONNX file at {path}")
    try:
        model = onnx.load_model(path, format="protobuf", load_external_data=False)
    except Exception as error:  # Protocol Buffers' own, and what reading raises
        raise UserError(f"{path} is damaged, or no ONNX file: {error}") from error
    if not model.ir_version or not model.graph.output:  # Protocol Buffers read much as if it were theirs
        raise UserError(f"{path} is damaged, or no ONNX file: there is no graph in it")
    for one in tensors_of(path, model):
        if one.data_type not in onnx.helper.get_all_tensor_dtypes():
            raise UserError(
                f"{path}: the weights {one.name!r:.80} are of type {one.data_type}, which ONNX does not know"
            )
    return model


def tensors_of(path: Path, model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Its weights: initializers, and what stands in nodes. Raises UserError where some are sparse."""
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    attributes = [attribute for node in nodes for attribute in node.attribute]
    sparse = [one.values.name for one in model.graph.sparse_initializer]
    sparse += [attribute.name for attribute in attributes if attribute.HasField("sparse_tensor")]
    if sparse:
        raise UserError(
            f"{path} has sparse weights ({sparse[0]!r:.80}), which are not supported: write them as dense ones"
        )
    return [*model.graph.initializer, *(attribute.t for attribute in attributes if attribute.HasField("t"))]


def weights_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files beside the graph that hold its weights. Raises UserError where one is not there."""
    places = {entry.value for one in tensors_of(path, model) for entry in one.external_data if entry.key == "location"}
    for place in sorted(places):
        if Path(place).name != place or not (path.parent / place).is_file():
            raise UserError(f"{path} has weights in {place!r}, which is no file beside it: copy both")
    return [path.parent / place for place in sorted(places)]


def declared(path: Path, values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[str, Shape]]:
    """dtype and shape of each, by name; an axis that nobody named has a name of its own."""
    found: dict[str, tuple[str, Shape]] = {}
    for value in values:
        tensor = value.type.tensor_type
        if tensor.elem_type not in DTYPES:
            known = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()} | {0: "no tensor"}
            kind = known.get(tensor.elem_type, f"of type {tensor.elem_type}, which ONNX does not know")
            raise UserError(f"{path}: {value.name} is {kind}; allowed: {', '.join(DTYPES.values())}")
        if not tensor.HasField("shape"):
            raise UserError(
                f"{path}: the graph does not tell the shape of {value.name}: let onnx.shape_inference do so"
            )
        found[value.name] = (
            DTYPES[tensor.elem_type],
            tuple(
                int(axis.dim_value) if axis.HasField("dim_value") else axis.dim_param or f"{value.name}_axis{place}"
                for place, axis in enumerate(tensor.shape.dim)
            ),
        )
    return found


def told(values: Mapping[str, tuple[str, Shape]]) -> str:
    """As messages say it: ``x float32 [batch, 1, 8, 8], sigma float32 []``."""
    return ", ".join(f"{name} {dtype} [{', '.join(map(str, shape))}]" for name, (dtype, shape) in values.items())
