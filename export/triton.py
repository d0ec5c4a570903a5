"""Writes a bundle in the form that Triton Inference Server reads. Needs no PyTorch, and no Triton.

python -m export triton BUNDLE --out repository/
docker run --gpus all -v $PWD/repository:/models … tritonserver --model-repository=/models

repository/NAME         noise and conditions in, images out: the bundle's TensorRT engines, or its ONNX graph
repository/NAME-noise   seeds in, noise out: NumPy in Triton's Python backend
repository/NAME-seeds   both as one: seeds and conditions in, images out

Sources: triton-inference-server/server, docs/user_guide/model_configuration.md, ensemble_models.md;
triton-inference-server/common, protobuf/model_config.proto.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.export.triton_noise import model_file
from edge_sampler.runtime.backends.trt import preferred
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key
from edge_sampler.runtime.condition import Shape, axis_in
from edge_sampler.runtime.engine_record import MOST_BATCH, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import Marker, check_link, writable
from edge_sampler.runtime.sampler import feed_of
from edge_sampler.runtime.verified import weights_beside

CONFIG, MADE = "config.pbtxt", "# Made by edge-sampler."  # begins it, which tells our models from others
OURS: Marker = (CONFIG, lambda content: MADE.encode() in content)
DEFAULT_BATCH = 16  # images in one run of a graph, which takes any number
DELAY = 5000  # microseconds that a batch waits to be full
TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8"}
Message = Mapping[str, Any]  # of protocol buffers: a list is a repeated field


class Word(str):
    """An enumeration's value, which stands without quotes."""


def main() -> None:
    parser = Parser(prog="python -m export triton", description=__doc__)
    parser.add_argument("bundle", type=Path)
    add_verify_key(parser)
    parser.add_argument("--out", type=Path, required=True, help="the model repository, which may hold other models")
    parser.add_argument("--name", help="the model's name (default: the bundle's folder)")
    parser.add_argument("--batch", type=int, help=f"most images in one run (default: the engines', or {DEFAULT_BATCH})")
    parser.add_argument("--precision", help="such as fp16 (default: the engines' fastest, or fp32)")
    parser.add_argument("--force", action="store_true", help="replace models of these names")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    name = arguments.bundle.resolve().name if arguments.name is None else arguments.name
    if name in ("", "..") or Path(name).name != name or not name.isprintable():
        raise UserError(f"--name is {name!r}; it must be the name of a folder")
    form = form_of(bundle, arguments.precision, arguments.batch)
    write_repository(bundle, name, form, arguments.out, arguments.force)
    print(f"{arguments.out}: {name} ({form.told}), {name}-noise, {name}-seeds; up to {form.batch} images in one run")


@dataclass(frozen=True)
class Form:
    """What runs in Triton: a graph, by its file in the bundle; or engines, by GPU as in 8.6."""

    batch: int
    usual: int  # the batch that is preferred
    graph: str = ""
    engines: Mapping[str, Engine] = field(default_factory=dict)

    @property
    def told(self) -> str:
        if not self.engines:
            return f"{self.graph}, for ONNX Runtime"
        versions = sorted({engine.version for engine in self.engines.values()})
        return f"TensorRT {', '.join(versions)}, for GPUs {', '.join(self.engines)}: take a Triton with that release"


def form_of(bundle: Bundle, precision: str | None, batch: int | None) -> Form:
    """TensorRT's engines where there are some, of the fastest precision for each GPU; else the graph.

    Raises UserError for a precision that is not there, engines that cannot make one image, and a batch beyond theirs.
    """
    if batch is not None and not 1 <= batch <= MOST_BATCH:
        raise UserError(f"--batch is {batch}; it must be at least 1 and at most {MOST_BATCH:,}")
    engines = [one for one in bundle.engines if one.flavour == "tensorrt" and precision in (None, one.precision)]
    engines.sort(key=preferred)
    chosen = {f"{target[2:-1]}.{target[-1]}": one for one in reversed(engines) for target in one.targets}
    chosen = dict(sorted(chosen.items(), key=lambda entry: float(entry[0])))
    if not chosen:
        graph = bundle.graph_name(precision)
        if graph not in bundle.manifest["files"]:
            raise UserError(f"{bundle.folder} holds no {graph}, and no TensorRT engine of {precision}")
        return Form(batch or DEFAULT_BATCH, batch or DEFAULT_BATCH, graph)
    for engine in chosen.values():
        if engine.batch.min > 1:
            raise UserError(f"{engine.file} takes {engine.batch.min} images at the least, and Triton sends one too")
    largest = min(engine.batch.max for engine in chosen.values())
    if batch is not None and batch > largest:
        raise UserError(f"--batch is {batch}, and the engines take {largest} at most")
    largest = batch or largest
    return Form(largest, min(largest, *(one.batch.opt for one in chosen.values())), engines=chosen)


def write_repository(bundle: Bundle, name: str, form: Form, out: Path, force: bool = False) -> None:
    """The three models, each whole or not there.

    Raises UserError where one is there without ``force``, and for a folder that Python imports as something else.
    """
    check_link(out)
    if out.resolve().name == "triton" or any(out.glob("*.py")):
        raise UserError(f"{out} would hide or hold a package of Python's; choose another folder with --out")
    with ExitStack() as whole:
        ends = ("-seeds", "-noise", "")  # the first is renamed last: what it needs is there by then
        seeds, noise, base = (
            whole.enter_context(writable(out / f"{name}{end}", force, "model of Triton", OURS)) for end in ends
        )
        feed = feed_of(bundle, [0], bundle.examples(1))
        _put(base, base_config(bundle, name, form, feed))
        for file, content in feed.items():
            (base / "warmup").mkdir(exist_ok=True)
            (base / "warmup" / file).write_bytes(content[0].tobytes())
        if form.graph:
            bundle.copy(form.graph, base / "1" / "model.onnx")
            for data in weights_beside(Path(form.graph)):
                if data.name in bundle.manifest["files"]:
                    bundle.copy(data.name, base / "1" / data.name)
        for engine in {one.file: one for one in form.engines.values()}.values():
            bundle.copy(engine.file, base / "1" / _plan(engine))
        _put(noise, noise_config(bundle, name, form))
        (noise / "1" / "model.py").write_text(model_file(), encoding="utf-8")
        _put(seeds, seeds_config(bundle, name, form))


def base_config(bundle: Bundle, name: str, form: Form, feed: Mapping[str, np.ndarray]) -> Message:
    """``feed`` is what the model is warmed up with, one sample."""
    warm = {
        key: {"data_type": Word(TYPES[array.dtype.name]), "dims": list(array.shape[1:]) or [1], "input_data_file": key}
        for key, array in feed.items()
    }
    runs: dict[str, Any] = {"backend": "onnxruntime", "default_model_filename": "model.onnx"}
    if form.engines:
        files = {capability: _plan(engine) for capability, engine in form.engines.items()}
        runs = {
            "backend": "tensorrt",
            "default_model_filename": next(iter(files.values())),
            "cc_model_filenames": _map(files),
        }
    return {
        "name": name,
        **runs,
        "max_batch_size": form.batch,
        "input": [_tensor("noise", "float32", bundle.inputs.shape), *_conditions(bundle, reshape=True)],
        "output": [_output(bundle)],
        "instance_group": [{"count": 1, "kind": Word("KIND_GPU" if form.engines else "KIND_AUTO")}],  # of each GPU
        "dynamic_batching": {
            "preferred_batch_size": sorted({form.usual, form.batch}),
            "max_queue_delay_microseconds": DELAY,
        },
        "model_warmup": [
            {"name": f"batch {count}", "batch_size": count, "inputs": _map(warm)} for count in sorted({1, form.batch})
        ],
    }


def noise_config(bundle: Bundle, name: str, form: Form) -> Message:
    """Axes with names are sized by the first condition that has them; else they are of their usual size."""
    sized = _sized_by(bundle)
    sizes = [[*sized[one]] if one in sized else _usual(bundle, one) for one in bundle.inputs.shape]
    shape = tuple(one if one in sized else _usual(bundle, one) for one in bundle.inputs.shape)
    return {
        "name": f"{name}-noise",
        "backend": "python",
        "max_batch_size": form.batch,
        "input": [
            _tensor("seeds", "int64", ()),
            *(one for one in _conditions(bundle) if one["name"] in _sizing(bundle)),
        ],
        "output": [_tensor("noise", "float32", shape)],
        "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
        "parameters": _map(
            {
                "shape": {"string_value": json.dumps(sizes)},
                "temperature": {"string_value": str(bundle.temperature)},
            }
        ),
    }


def seeds_config(bundle: Bundle, name: str, form: Form) -> Message:
    conditions, output = list(bundle.inputs.conditions), bundle.output.name

    def step(model: str, inputs: Sequence[str], made: str) -> Message:
        same = [{"key": one, "value": one} for one in inputs]
        return {
            "model_name": model,
            "model_version": -1,
            "input_map": same,
            "output_map": [{"key": made, "value": made}],
        }

    return {
        "name": f"{name}-seeds",
        "platform": "ensemble",
        "max_batch_size": form.batch,
        "input": [_tensor("seeds", "int64", ()), *_conditions(bundle)],
        "output": [_output(bundle)],
        "ensemble_scheduling": {
            "step": [
                step(f"{name}-noise", ["seeds", *_sizing(bundle)], "noise"),
                step(name, ["noise", *conditions], output),
            ]
        },
    }


def _plan(engine: Engine) -> str:
    return f"{Path(engine.file).stem}.plan"


def _sized_by(bundle: Bundle) -> dict[int | str, tuple[str, int, int]]:
    """For each axis with a name that a condition has: the first such, which of its axes, and how many times it is."""
    found: dict[int | str, tuple[str, int, int]] = {}
    for name, condition in bundle.inputs.conditions.items():
        for place, size in enumerate(condition.shape):
            times, axis = axis_in(str(size))
            if axis in bundle.inputs.shape:
                found.setdefault(axis, (name, place, times))
    return found


def _sizing(bundle: Bundle) -> list[str]:
    """Conditions that the noise's shape is read of."""
    return list(dict.fromkeys(name for name, *_ in _sized_by(bundle).values()))


def _usual(bundle: Bundle, size: int | str) -> int:
    return bundle.inputs.axes[size].usual if isinstance(size, str) else size


def _tensor(name: str, dtype: str, shape: Shape, reshape: bool = False) -> dict[str, Any]:
    """One sample's; Triton has no scalars, so that one is [1], and the model may take it as []."""
    dims = [-1 if isinstance(size, str) else size for size in shape]
    scalar: dict[str, Any] = {"reshape": {"shape": []}} if reshape and not dims else {}
    return {"name": name, "data_type": Word(TYPES[dtype]), "dims": dims or [1], **scalar}


def _conditions(bundle: Bundle, reshape: bool = False) -> list[dict[str, Any]]:
    return [_tensor(name, one.dtype, one.shape, reshape) for name, one in bundle.inputs.conditions.items()]


def _output(bundle: Bundle) -> dict[str, Any]:
    shape = bundle.output.shape
    return _tensor(bundle.output.name, bundle.dtype, (*shape[1:], shape[0]) if bundle.dtype == "uint8" else shape)


def _map(entries: Mapping[str, Any]) -> list[Message]:
    return [{"key": key, "value": value} for key, value in entries.items()]


def _put(folder: Path, config: Message) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / CONFIG).write_text("\n".join([MADE, *lines(config)]) + "\n", encoding="utf-8")


def lines(message: Message, indent: str = "") -> Iterator[str]:
    """A message in protocol buffers' text format."""
    for name, value in message.items():
        for one in (
            value if isinstance(value, list) and name not in ("dims", "shape", "preferred_batch_size") else [value]
        ):
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {one if isinstance(one, Word) else json.dumps(one)}"
