"""Builds TensorRT and TensorRT-RTX engines from a bundle's graph. Nothing here needs PyTorch: a Jetson builds its own.

TensorRT-RTX builds without a GPU, for any of the compute capabilities that it knows; TensorRT builds for the GPU it is
run on. Precision is what the graph says: networks are strongly typed, and TF32 is off, so that fp32 means float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edge_sampler.export.lift_scales import lift_scales
from edge_sampler.export.lower import lower_opset
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.export.tensorrt_release import reads
from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends.tensorrt_module import Library, library, logger, version
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import number_of
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.scratch import scratch

if TYPE_CHECKING:
    import tensorrt

DEFAULT_TARGETS = ("sm80", "sm86", "sm89", "sm120")  # TensorRT-RTX's own default; sm75 costs speed on the others
FP8_FROM = 89  # Ada's compute capability


@dataclass(frozen=True)
class Built:
    """What a build made."""

    engine_bytes: Any  # a buffer
    layers: int  # of the network as parsed
    log: list[str]


def engine_for(
    flavour: str,
    targets: str | None,
    precision: str,
    batch: Batch,
    loop: bool = False,
) -> Engine:
    """The engine to build, its axes still open.

    Raises UserError for a library that is missing or too old, a precision that it does not read, an unknown target, and
    one that is not this GPU's.
    """
    lib: Any = library(flavour)
    if loop and precision in QUANTISED:
        raise UserError(f"--loop has one copy of the network, and {precision} a scale for each evaluation: take fp16")
    if precision == "bf16" and not reads(flavour, version(flavour)).bf16:
        raise UserError(f"TensorRT {version(flavour)} reads no bf16 graphs: take --precision fp16")
    least = FP8_FROM if precision == "fp8" else 0
    if flavour == "tensorrt-rtx":
        known = sorted((name.lower() for name in dir(lib.ComputeCapability) if name.startswith("SM")), key=_number)
        default = tuple(target for target in DEFAULT_TARGETS if _number(target)[0] >= least)
        chosen = tuple(sorted(set(targets.split(",")), key=_number)) if targets is not None else default
        unknown = [target for target in chosen if target not in known]
        if unknown:
            raise UserError(f"unknown target {unknown[0]!r}; {flavour} {version(flavour)} knows {', '.join(known)}")
    else:
        with cuda.Device() as device:
            chosen = (device.capability,)
        if targets not in (None, *chosen):
            raise UserError(f"target {targets} is not this machine's GPU, {chosen[0]}: TensorRT builds for that alone")
    if too_old := [target for target in chosen if _number(target)[0] < least]:
        raise UserError(f"{too_old[0]} does not compute in fp8, sm{least} and later do: take other targets, or int8")
    name = "-".join([flavour, precision, *chosen, f"b{batch}".replace(":", "_"), *(["loop"] if loop else [])])
    return Engine(f"engines/{name}.engine", flavour, version(flavour), chosen, precision, batch, loop)


def _number(target: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, target))
    return int(digits or 0), target


def read_graph(bundle: Bundle, engine: Engine, added: Path | None = None) -> ir.Model:
    """The graph to build the engine of, in its precision; rolled up where the engine is a loop.

    A quantised one is read as it was written, to the bundle or to the folder of what is being ``added``.
    """
    if engine.precision in QUANTISED:
        name = bundle.graph_name(engine.precision)
        graph = ir.load(added / name if added and (added / name).exists() else bundle.graph(name))
        lift_scales(graph)
        return graph
    if not engine.loop:
        graph = ir.load(bundle.graph("sampler.onnx"))
    else:
        denoiser, encoder, decoder = (read_stage(bundle, name) for name in ("denoiser", "encoder", "decoder"))
        assert denoiser is not None
        graph = roll(denoiser, bundle.plan, bundle.dtype, encoder, decoder, bundle.output.name)
    if engine.precision != "fp32":
        lower_precision(graph, engine.precision)
    return graph


def read_stage(bundle: Bundle, name: str) -> ir.Model | None:
    file = f"{name}.onnx"
    return ir.load(bundle.graph(file)) if file in bundle.manifest["files"] else None


def build(graph: ir.Model, engine: Engine) -> Built:
    """The engine of a sampler's graph, which is changed on the way. Raises UserError in the library's words."""
    lib, log = library(engine.flavour), logger(engine.flavour)
    with parsed(lib, log, graph, engine) as (builder, network):
        serialized = builder.build_serialized_network(network, configure(lib, builder, network, engine))
        if serialized is None:
            raise UserError(f"{engine.flavour} could not build {engine.file}: {log.last_error()}")
        return Built(serialized, network.num_layers, list(log.lines))


@contextmanager
def parsed(
    lib: Library, log: Any, graph: ir.Model, engine: Engine
) -> Iterator[tuple["tensorrt.Builder", "tensorrt.INetworkDefinition"]]:
    """The graph as the library's network, and the builder that made it."""
    log.lines.clear()
    release = reads(engine.flavour, engine.version)
    prepare_for_tensorrt(graph, engine.batch.max if engine.batch.static else None, release.group_norm)
    if release.opset is not None:
        lower_opset(graph, release.opset)
    builder = lib.Builder(log)
    network = builder.create_network(strongly_typed(lib))
    parser = lib.OnnxParser(network, log)
    with scratch() as folder:  # until the end: the network's weights point into the file
        path = folder / "sampler.onnx"
        save_checked(graph, path)
        if not parser.parse_from_file(str(path)):
            problems = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
            raise UserError(f"{engine.flavour} cannot read the graph: {problems}")
        share_norm_scales(lib, network)
        yield builder, network


def strongly_typed(lib: Library) -> int:
    """The flag for ``create_network``. TensorRT 10 needs it; 11 knows no other way, and may drop the name."""
    flag = getattr(lib.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def configure(
    lib: Library, builder: "tensorrt.Builder", network: "tensorrt.INetworkDefinition", engine: Engine
) -> "tensorrt.IBuilderConfig":
    config = builder.create_builder_config()
    config.max_aux_streams = 0  # less scratch memory, and nothing here runs side by side
    config.clear_flag(lib.BuilderFlag.TF32)  # the one flag about precision that all versions have
    if engine.flavour == "tensorrt-rtx":
        set_targets(lib, config, engine.targets)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *(lib.Dims(sizes) for sizes in shapes_of(tensor, engine)))
    config.add_optimization_profile(profile)
    return config


def shapes_of(tensor: "tensorrt.ITensor", engine: Engine) -> Iterator[list[int]]:
    """The least, usual and largest shape of an input [batch, …]: the profile of the batch, and of axes with names."""
    for which, batch in enumerate((engine.batch.min, engine.batch.opt, engine.batch.max)):
        axes = {name: sizes[which] for name, sizes in engine.axes.items()}
        sizes = [(place, int(tensor.shape[place])) for place in range(1, len(tensor.shape))]
        shape = [number_of(tensor.get_dimension_name(place), axes) if size < 0 else size for place, size in sizes]
        yield [batch, *shape]


def set_targets(rtx: Any, config: Any, targets: tuple[str, ...]) -> None:
    """Sets compute capabilities, which only TensorRT-RTX's API has."""
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(rtx.ComputeCapability, target.upper()), index)


def share_norm_scales(lib: Library, network: "tensorrt.INetworkDefinition") -> None:
    """Lets the normalizations of all evaluations that have the same weights read them from the same layers.

    The parser adds two layers to bring each scale and bias into shape: a quarter of all layers, and building time grows
    with the square of their number.
    """
    made_by: dict[str, tensorrt.ILayer] = {}
    shaped: dict[tuple[str, int], tensorrt.ITensor] = {}  # weight and rank → the first tensor made of it
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            made_by[layer.get_output(output).name] = layer
        if layer.type != lib.LayerType.NORMALIZATION:
            continue
        for position in (1, 2):
            tensor = layer.get_input(position)
            if tensor is None or tensor.name not in made_by:
                continue
            source = made_by[tensor.name].get_input(0)
            key = tensor.name if source is None else source.name, len(tensor.shape)
            layer.set_input(position, shaped.setdefault(key, tensor))
