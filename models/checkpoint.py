"""Reads foreign weights without running anything that is in them: EDM and EDM2 pickles, safetensors, state dicts."""

import collections
import hashlib
import io
import math
import mmap
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edge_sampler.models import edm2, pickle_bounds
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import parse_json

FLOATS = frozenset(  # those that have each value in a number of its own
    {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
)
FORMATS = (".pkl", ".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the architecture's arguments where the file names them (``precond`` among them)."""

    tensors: Mapping[str, Tensor]
    architecture: dict[str, Any] | None = None
    metadata: Mapping[str, str] | None = None


def read(path: Path) -> Checkpoint:
    """Reads ``path`` by its suffix.

    Raises UserError when the file is missing, truncated, of another format, or names anything executable.
    """
    if not path.is_file():
        raise UserError(f"no weights file at {path}")
    readers = {".pkl": _read_edm_pickle, ".safetensors": _read_safetensors}
    reader = readers.get(path.suffix, _read_state_dict)
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: unknown weights format {path.suffix!r}; allowed: {', '.join(FORMATS)}")
    try:
        found = reader(path)
        for name, tensor in found.tensors.items():
            if tensor.is_floating_point() and tensor.dtype not in FLOATS:
                raise UserError(f"{name!r:.80} holds {tensor.dtype}, which is not read: store its values in float32")
        return found
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise almost anything from the readers' depths
        reason = str(error).split("\n", maxsplit=1)[0][:200]
        raise UserError(
            f"{path}: damaged or not a {path.suffix} weights file ({type(error).__name__}: {reason})"
        ) from error


def shapes_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the sorted ``name [shape]`` lines: identifies an architecture."""
    lines = sorted(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values in sorted order: identifies weights, whatever file they came in.

    A complex number is two. What is no tensor, which some modules keep among their weights, does not count.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name, value in tensors.items() if isinstance(value, Tensor)):
        tensor = tensors[name].detach()
        numbers = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        values = np.ascontiguousarray(numbers.to("cpu", torch.float32).numpy())
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()


# EDM's official pickles. Each module in one is a call of _reconstruct_persistent_obj(meta), where meta holds Python
# source that the original loader executes. We know these names alone, and build plain holders.


class _Holder:
    """Stands for any object of the pickle that is not a tensor or a plain container."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.built = arguments, None
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.built = state
        if isinstance(state, dict):
            self.state = state


class _Dict(dict[Any, Any]):
    """Stands for a dict whose keys are attributes. In files of older Pythons it has a state too, an empty one."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Array(_Holder):
    """Stands for a NumPy array."""

    def numbers(self) -> np.ndarray:
        """Those of a row of float32. Raises UserError for anything else."""
        _, shape, dtype, _, content = self.built or (None, (), None, None, None)
        told: tuple[Any, ...] = (*dtype.arguments[:1], *(dtype.built or ())[1:2]) if isinstance(dtype, _Holder) else ()
        if told != ("f4", "<") or len(shape) != 1 or not isinstance(content, bytes):
            raise UserError("an array beside the network is no row of float32")
        return np.frombuffer(content, "<f4", *shape)


def _module(meta: dict[str, Any]) -> _Holder:
    holder = _Holder()
    holder.state = dict(meta["state"] or {}, class_name=meta["class_name"])
    return holder


class _StorageNames(pickle.Unpickler):
    """Finds which storages a pickle of torch.save's names; all else are holders."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.found = set[Any]()

    def find_class(self, module: str, name: str) -> Any:
        return collections.OrderedDict if name == "OrderedDict" else _Holder

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "storage":
            self.found.add(pid[2])
        return _Holder()


def _check_torch_file(content: pickle_bounds.Bytes, file: Any) -> None:
    """``pickle_bounds.check_torch_file``; and before PyTorch 1.6's format, that each storage's values are there, once.

    PyTorch fills those alone that the list behind the object names. Others would be whatever memory holds.
    """
    pickle_bounds.check_torch_file(content, file)
    if pickle_bounds.is_zip(content):
        return
    for _ in range(pickle_bounds.PICKLES_BEFORE_1_6 - 2):
        _StorageNames(content).load()
    named = _StorageNames(content)
    named.load()
    stored = _StorageNames(content).load()
    if not isinstance(stored, list) or sorted(map(str, stored)) != sorted(map(str, named.found)):
        raise UserError("refused: its list of stored values is not that of its tensors'")


def _storage(payload: bytes) -> Any:
    content = io.BytesIO(payload)
    _check_torch_file(content, content)
    return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    stored = storage._untyped_storage  # the public accessor warns
    check_view(offset, size, stride, stored.nbytes() // storage.dtype.itemsize)
    return torch.empty(0, dtype=storage.dtype).set_(stored, offset, size, stride)


def check_view(offset: int, size: Sequence[int], stride: Sequence[int], stored: int) -> None:
    """Raises UserError for a tensor that claims values which are not stored, or one value more than once."""
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UserError(f"a tensor of shape {list(size)} has an offset and strides that are none")
    if not math.prod(size):
        return
    reach = 1
    for step, count in sorted(zip(stride, size, strict=True)):
        if count > 1 and step < reach:
            raise UserError(f"a tensor of shape {list(size)} claims more values than it has, some of them repeatedly")
        reach += (count - 1) * step
    if offset + reach > stored:
        raise UserError(f"a tensor of shape {list(size)} claims more values than are stored")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch.nn.modules.container", "ModuleDict"): _Holder,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _module,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("numpy", "dtype"): _Holder,
    ("numpy", "ndarray"): _Holder,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _Holder,
    ("numpy._core.multiarray", "scalar"): _Holder,
}


class _EDMUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            named = repr(f"{module}.{name}")[:80]
            raise UserError(
                f"refused: the pickle names {named}, which no EDM snapshot needs; nothing was executed"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        raise UserError("refused: the pickle names a persistent object, which no EDM snapshot has")


def _read_edm_pickle(path: Path) -> Checkpoint:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        pickle_bounds.check(content)
        snapshot = _EDMUnpickler(file).load()
    ema = snapshot.get("ema") if isinstance(snapshot, dict) else None
    if not isinstance(ema, _Holder) or "_init_kwargs" not in ema.state:
        raise UserError("not an EDM snapshot: it has no network under 'ema'")
    arguments = ema.state["_init_kwargs"]
    if odd := [name for name, value in arguments.items() if isinstance(value, Tensor | _Holder)]:
        raise UserError(f"the argument {odd[0]!r:.80} of its network is no plain value")
    if ema.state["class_name"] != edm2.CLASS:
        return Checkpoint(dict(_walk(ema)), {"precond": ema.state["class_name"], **arguments})
    beside = snapshot.get("encoder")
    encoder = beside.state if isinstance(beside, _Holder) else {}
    known = {name: value.numbers() if isinstance(value, _Array) else value for name, value in encoder.items()}
    return Checkpoint(dict(_walk(ema)), edm2.described(arguments, known))


def _walk(module: _Holder, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module and of those in it. What an unpickler accepted is no endless tree."""
    transient = module.state.get("_non_persistent_buffers_set", ())
    for kind in ("_parameters", "_buffers"):
        for name, tensor in module.state.get(kind, {}).items():
            if isinstance(tensor, Tensor) and name not in transient:
                yield prefix + name, tensor
    for name, child in module.state.get("_modules", {}).items():
        if isinstance(child, _Holder):
            yield from _walk(child, f"{prefix}{name}.")


def _read_safetensors(path: Path) -> Checkpoint:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors = safetensors.torch.load_file(path)
    architecture = parse_json(metadata["architecture"]) if "architecture" in metadata else None
    if not isinstance(architecture, dict | None):
        raise UserError("its architecture is no JSON object")
    return Checkpoint(tensors, architecture, metadata)


def _read_state_dict(path: Path) -> Checkpoint:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        _check_torch_file(content, file)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = named[1] if named else "an object"
        raise UserError(f"refused: the pickle names {what}, which no state dict needs; nothing was executed") from error
    for key in ("ema", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError("not a state dict: expected tensors by name, bare or under 'ema' or 'state_dict'")
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_neg():
            raise UserError(f"{name!r:.80} is a sparse, nested, negated or empty tensor, which no weights are")
        values = tensor.untyped_storage().nbytes() // tensor.itemsize
        check_view(tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), values)
    return Checkpoint({name: tensor.detach() for name, tensor in state.items()})  # of a parameter, its tensor
