"""KServe's protocol, version 2: tensors in JSON, and behind it in bytes. From a request's body, and to a response's.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; for bytes Triton's binary tensor data
extension, triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import parse_json

HEAD_LENGTH = "Inference-Header-Content-Length"  # bytes of the JSON, where tensors follow it
BYTES = "BYTES"  # of text, in UTF-8
DTYPES = {
    "BOOL": "bool",
    **{f"UINT{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
}
MOST_AXES, MOST_VALUES = 32, 2**48  # of a tensor; every NumPy makes arrays of so many
NAMES = {np.dtype(dtype).name: name for name, dtype in DTYPES.items()}
JSON_TYPES: dict[str, set[type]] = {
    "b": {bool},
    "i": {int},
    "u": {int},
    "f": {int, float},
}  # of NumPy's kinds; bool is no int here


@dataclass(frozen=True)
class Tensor:
    """``array`` is of strings (dtype object) where ``datatype`` is BYTES."""

    datatype: str
    array: np.ndarray


@dataclass(frozen=True)
class Asked:
    """An inference request.

    Args:
        outputs: those asked for by name, and whether in bytes; empty: all, in bytes where ``binary``.
        parameters: without those of the protocol's extensions.
    """

    id: str | None
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, bool]
    binary: bool
    parameters: Mapping[str, Any]


def read_request(body: bytes, head_length: str | None) -> Asked:
    """``head_length`` is the header HEAD_LENGTH, where there is one. Raises UserError for what is no request."""
    head, data = _head(body, head_length), memoryview(body)[int(head_length) if head_length else len(body) :]
    id = head.get("id")
    if not isinstance(id, str | None):
        raise UserError(f"id is {_told(id)}; it must be a string")
    inputs: dict[str, Tensor] = {}
    for item in _items(head, "inputs", required=True):
        name = _name(item, "inputs", inputs)
        shape, datatype = _shape(name, item), item.get("datatype")
        if datatype != BYTES and datatype not in list(DTYPES):
            raise UserError(f"{_told(name)} has datatype {_told(datatype)}; allowed: {', '.join((*DTYPES, BYTES))}")
        size = _parameters(item, name, ("binary_data_size",)).get("binary_data_size")
        if size is None:
            inputs[name] = Tensor(datatype, _of_json(name, datatype, shape, item))
            continue
        if "data" in item:
            raise UserError(f"{_told(name)} has both data and binary_data_size; give one of them")
        if type(size) is not int or not 0 <= size <= len(data):
            raise UserError(f"{_told(name)} has a binary_data_size of {_told(size)}, and {len(data)} bytes are left")
        inputs[name] = Tensor(datatype, _of_bytes(name, datatype, shape, data[:size]))
        data = data[size:]
    if len(data):
        raise UserError(f"{len(data)} bytes behind the last input; their binary_data_size must add up to all")
    outputs: dict[str, bool] = {}
    parameters = head.get("parameters", {})
    if not isinstance(parameters, dict):
        raise UserError(f"parameters are {_told(parameters)}; they must be an object")
    binary = _flag(parameters, "binary_data_output", False)
    for item in _items(head, "outputs", required=False):
        name = _name(item, "outputs", outputs)
        outputs[name] = _flag(_parameters(item, name, ("binary_data",)), "binary_data", binary)
    others = {key: value for key, value in parameters.items() if key != "binary_data_output"}
    return Asked(id, inputs, outputs, binary, others)


def write_response(asked: Asked, model: str, outputs: Mapping[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """A response's body and headers. Raises UserError where an output was asked for that is not there."""
    for name in asked.outputs:
        if name not in outputs:
            raise UserError(f"unknown output {name!r}; this model makes {', '.join(outputs)}")
    told, data = list[dict[str, Any]](), list[bytes]()
    for name, array in outputs.items():
        if asked.outputs and name not in asked.outputs:
            continue
        one: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype.name], "shape": list(array.shape)}
        if asked.outputs.get(name, asked.binary):
            data.append(array.astype(DTYPES[one["datatype"]], copy=False).tobytes())
            one["parameters"] = {"binary_data_size": len(data[-1])}
        else:
            one["data"] = array.ravel().tolist()
        told.append(one)
    head = {
        "model_name": model,
        "model_version": "1",
        **({} if asked.id is None else {"id": asked.id}),
        "outputs": told,
    }
    written = json.dumps(head).encode()
    if not data:
        return written, {"Content-Type": "application/json"}
    return b"".join((written, *data)), {"Content-Type": "application/octet-stream", HEAD_LENGTH: str(len(written))}


def _head(body: bytes, length: str | None) -> dict[str, Any]:
    if length is not None and not (length.isascii() and length.isdigit() and int(length[:20]) <= len(body)):
        raise UserError(f"{HEAD_LENGTH} is {length[:40]!r}; it must be the bytes of JSON among the body's {len(body)}")
    try:
        head = parse_json((body[: int(length)] if length else body).decode())
    except ValueError as error:  # of bytes that are no UTF-8, too
        raise UserError(f"the body is not JSON: {error}"[:300]) from error
    if not isinstance(head, dict):
        raise UserError(f"the body is {_told(head)}; it must be an object with inputs")
    return head


def _items(head: Mapping[str, Any], key: str, required: bool) -> Sequence[dict[str, Any]]:
    items = head.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items) or (required and not items):
        raise UserError(f"{key} must be a list of objects{', at least one' * required}, and {key} is {_told(items)}")
    return items


def _name(item: Mapping[str, Any], of: str, known: Mapping[str, object]) -> str:
    name = item.get("name")
    if not isinstance(name, str):
        raise UserError(f"one of {of} has the name {_told(name)}; it must be a string")
    if name in known:
        raise UserError(f"{of} has {_told(name)} twice")
    return name


def _shape(name: str, item: Mapping[str, Any]) -> tuple[int, ...]:
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise UserError(f"{_told(name)} has shape {_told(shape)}; it must be a list of whole numbers")
    if len(shape) > MOST_AXES or prod(filter(None, shape)) > MOST_VALUES:  # NumPy counts the sizes beside a 0, too
        raise UserError(f"{_told(name)} has shape {_told(shape)}, which no array can have")
    return tuple(shape)


def _parameters(item: Mapping[str, Any], name: str, known: Sequence[str]) -> dict[str, Any]:
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict) or set(parameters) - set(known):
        raise UserError(f"{_told(name)} has parameters {_told(parameters)}; allowed: {', '.join(known)}")
    return parameters


def _flag(parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{key} is {_told(value)}; it must be true or false")
    return value


def _of_json(name: str, datatype: str, shape: tuple[int, ...], item: Mapping[str, Any]) -> np.ndarray:
    """Values in row-major order, or nested as ``shape`` says."""
    values = item.get("data")
    if not isinstance(values, list):
        raise UserError(f"{_told(name)} has data {_told(values)}; it must be a list, or bytes with a binary_data_size")
    nested = [len(values)]
    while values and all(type(value) is list for value in values):
        if len(lengths := {len(value) for value in values}) != 1:
            raise UserError(f"{_told(name)} has rows of different lengths")
        nested += lengths
        values = list(chain.from_iterable(values))
    if len(values) != prod(shape) or (len(nested) > 1 and tuple(nested) != shape):
        raise UserError(f"{_told(name)} has data of shape {_told(nested)}, which is not its shape {_told(list(shape))}")
    allowed: set[type] = {str} if datatype == BYTES else JSON_TYPES[np.dtype(DTYPES[datatype]).kind]
    if wrong := set(map(type, values)) - allowed:
        raise UserError(f"{_told(name)} is {datatype} and holds {', '.join(sorted(kind.__name__ for kind in wrong))}")
    try:
        with np.errstate(over="ignore"):  # infinity, which is told below
            array = np.array(values, object if datatype == BYTES else DTYPES[datatype])
    except (OverflowError, ValueError) as error:
        raise UserError(f"{_told(name)} holds what is no {datatype}: {error}"[:300]) from error
    infinite = np.flatnonzero(np.isinf(array)) if array.dtype.kind == "f" else ()
    if beyond := [values[place] for place in infinite if math.isfinite(values[place])]:
        raise UserError(f"{_told(name)} holds {beyond[0]}, which is beyond {datatype}")
    return array.reshape(shape)


def _of_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    """Little-endian; BYTES have each their length, four bytes, before them."""
    count = prod(shape)
    if datatype != BYTES:
        dtype = np.dtype(DTYPES[datatype])
        if count * dtype.itemsize != len(data):
            told = f"{datatype} of shape {_told(list(shape))}"
            wanted = count * dtype.itemsize
            raise UserError(f"{_told(name)} has a binary_data_size of {len(data)}, and {told} takes {wanted}")
        if datatype == "BOOL":
            return (np.frombuffer(data, np.uint8) != 0).reshape(shape)
        return np.frombuffer(data, dtype).reshape(shape)
    texts, at = list[str](), 0
    while at + 4 <= len(data) and len(texts) <= count:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if end > len(data):
            break
        try:
            texts.append(bytes(data[at + 4 : end]).decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{_told(name)} is text that is no UTF-8: {error}") from error
        at = end
    if at != len(data) or len(texts) != count:
        raise UserError(f"{_told(name)} has {len(data)} bytes, which are not {count} texts with their lengths")
    return np.array(texts, object).reshape(shape)


def _told(value: Any) -> str:
    """JSON as a message shows it: short."""
    try:
        written = json.dumps(value)
    except (RecursionError, ValueError):
        return "something nested deep"
    return written if len(written) <= 60 else f"{written[:57]}…"
