"""ONNX Runtime: on the CPU, the baseline that every engine is compared with; and its two NVIDIA providers."""

import contextlib
import importlib
import importlib.util
import platform
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends.base import Backend, Spans, check_declared, check_inputs
from edge_sampler.runtime.backends.onnxrt_module import INSTALL, library, threads, without_links
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import number_of, sizes_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import in_utf8
from edge_sampler.runtime.protobuf import declare_outputs
from edge_sampler.runtime.verified import missing, weights_beside

CAPTURED = 16  # CUDA graphs of one session, as many as `serve` has sizes of a batch unless told
UNCAPTURED = -1  # in place of a graph's number
RTX_PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(bool)": "bool"}


@dataclass(frozen=True)
class Provider:
    """An execution provider of ONNX Runtime."""

    name: str
    install: str
    options: Mapping[str, str]


CPU = Provider("CPUExecutionProvider", INSTALL, {})
CUDA = Provider("CUDAExecutionProvider", "pip install onnxruntime-gpu, in place of onnxruntime", {"use_tf32": "0"})
# use_tf32 = 0 closes the tensor cores to 16 bits too; their heuristics' kernels are as fast as those that a search of
# 10 s finds, and float32's are not (docs/gpu.md)
CUDA_16_BITS = {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}
RTX = Provider("NvTensorRTRTXExecutionProvider", "pip install onnxruntime-ep-nv-tensorrt-rtx", {})


class Session:
    """One ONNX graph, loaded. ``outputs`` names intermediate values that ``run`` returns beside the graph's own.
    ``capture`` runs the graph as a CUDA graph: one launch in place of one for each kernel. ``content`` is the graph's,
    where it was read already: nothing that takes its place meanwhile is run.

    Raises UserError when the graph cannot be loaded or captured, or when the provider would silently leave it to the
    CPU.
    """

    largest_batch: int | None = None

    def __init__(
        self,
        path: Path,
        outputs: Sequence[str] = (),
        provider: Provider = CPU,
        precision: str = "fp32",
        optimise: bool = True,
        capture: bool = False,
        content: bytes | None = None,
    ) -> None:
        onnxruntime = library()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        ordered = provider is CPU and precision.endswith("16")  # several add in an order that the batch decides
        options.intra_op_num_threads = 1 if ordered else threads()
        if provider is CPU and saturates():
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if provider is CPU and any(file.exists() for file in weights_beside(path)):  # packed, they would be copies
            options.add_session_config_entry("session.disable_prepacking", "1")
        provider_options = dict(provider.options)
        if provider.name == CUDA.name and precision.endswith("16"):
            provider_options |= CUDA_16_BITS
        if capture:
            provider_options["enable_cuda_graph"] = "1"
        chosen: list[tuple[str, dict[str, str]]] | None = [(provider.name, provider_options)]
        if provider is RTX:
            options.add_provider_for_devices(_rtx_devices(), dict(provider.options))
            chosen = None  # the options name it
        elif provider.name == CUDA.name:
            onnxruntime.preload_dlls()  # finds the CUDA and cuDNN that pip installed
        with without_links(path) as found:
            folder_key = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(folder_key, in_utf8(found.parent.resolve()))
            if outputs:
                content = (found.read_bytes() if content is None else content) + declare_outputs(outputs)
            source = in_utf8(found) if content is None else content
            try:
                with ThreadPoolExecutor(1) as thread:  # whose creator flushes denormals from then on
                    making = thread.submit(onnxruntime.InferenceSession, source, options, providers=chosen)
                    self._session = making.result()
            except Exception as error:  # onnxruntime's exceptions share no base class but this
                reason = str(error).split("\n", maxsplit=1)[0]
                raise UserError(f"ONNX Runtime cannot load {path}: {reason}") from error
        active = self._session.get_providers()
        if active[0] != provider.name:
            raise UserError(
                f"ONNX Runtime would run {path.name} on {active[0]}, not on {provider.name}: check the driver"
            )
        self.takes = {one.name: (DTYPES.get(one.type, one.type), one.shape) for one in self._session.get_inputs()}
        self.outputs = [output.name for output in self._session.get_outputs()]
        self.precision = precision
        captured = ", CUDA graph" if capture else ""
        self.description = f"ONNX Runtime {onnxruntime.__version__}, {provider.name}{captured}, {path.name}"
        self._captured = CapturedRuns(self._session) if capture else None

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        check_inputs(self.takes, feed, self.description)
        try:
            if self._captured:
                return self._captured.run(feed)
            return dict(zip(self.outputs, self._session.run(self.outputs, dict(feed)), strict=True))
        except Exception as error:  # as above
            reason = str(error).split("\n", maxsplit=1)[0]
            raise UserError(f"ONNX Runtime could not run {self.description}: {reason}") from error

    def spans(self, feed: Mapping[str, np.ndarray]) -> Spans | None:
        return None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        self._captured = None
        del self._session


@dataclass(frozen=True)
class Bound:
    """Inputs and outputs that keep their addresses on the device, and the number of the CUDA graph that uses them."""

    inputs: Mapping[str, Any]  # OrtValues
    outputs: Mapping[str, Any]
    binding: Any
    options: Any


class CapturedRuns:
    """Runs of a session that captures: one CUDA graph for each combination of input shapes, the first ``most``.

    ONNX Runtime captures at the first run of a graph's number and replays from then on. It frees a graph with its
    session only, so that later shapes run as they are. One thread at a time: replays share the session's scratch
    memory. Source: ONNX Runtime's CUDA provider, "Using CUDA Graphs".
    """

    def __init__(self, session: Any, device: str = "cuda", most: int = CAPTURED) -> None:
        self._session, self._device, self._most = session, device, most
        self._lock, self._bound = threading.Lock(), dict[tuple[tuple[str, tuple[int, ...]], ...], Bound]()

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = tuple((name, array.shape) for name, array in sorted(feed.items()))
        with self._lock:
            bound = self._bound.get(shapes)
            if bound is None:
                number = len(self._bound) + 1
                bound = self._bind(feed, number if number <= self._most else UNCAPTURED)
                if number <= self._most:
                    self._bound[shapes] = bound
            for name, array in feed.items():
                bound.inputs[name].update_inplace(np.ascontiguousarray(array))
            self._session.run_with_iobinding(bound.binding, bound.options)
            return {name: np.array(value.numpy()) for name, value in bound.outputs.items()}

    def _bind(self, feed: Mapping[str, np.ndarray], number: int) -> Bound:
        onnxruntime = library()
        sizes: dict[str, int] = {}  # of the axes that have names
        for wanted in self._session.get_inputs():
            sizes |= sizes_of(wanted.shape, feed[wanted.name].shape)

        def on_device(shape: Sequence[int], dtype: Any) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, self._device, 0)

        inputs = {name: on_device(array.shape, array.dtype) for name, array in feed.items()}
        outputs = {
            made.name: on_device([number_of(size, sizes) for size in made.shape], DTYPES[made.type])
            for made in self._session.get_outputs()
        }
        binding, options = self._session.io_binding(), onnxruntime.RunOptions()
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        options.add_run_config_entry("gpu_graph_id", str(number))
        return Bound(inputs, outputs, binding, options)


@cache
def saturates() -> bool:
    """Whether products of eight bits, added up in 16, may overflow here without a word: on x86-64 without VNNI.

    There graphs of eight bits compute in float32, the same but not as fast. ONNX Runtime's own way out, kernels for
    two unsigned operands, fails where evaluations share a weight (1.32). Source: its "Quantize ONNX models".
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        return "vnni" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return True


@cache
def _register_rtx() -> None:
    """Makes the TensorRT-RTX plugin known, once. Raises UserError when it cannot be loaded."""
    try:
        plugin = importlib.import_module(RTX_PLUGIN)
        library().register_execution_provider_library(RTX.name, plugin.get_library_path())
    except Exception as error:  # as above
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{RTX_PLUGIN} cannot be loaded: {reason}") from error


def _rtx_devices() -> list[Any]:
    """The GPU that the TensorRT-RTX plugin offers. Raises UserError when it supports none."""
    _register_rtx()
    devices = [device for device in library().get_ep_devices() if device.ep_name == RTX.name]
    if not devices:
        raise UserError(f"{RTX_PLUGIN} finds no GPU that it supports")
    return devices[:1]


def _lacks(provider: Provider) -> str | None:
    try:
        onnxruntime = library()
        if provider is CPU:
            return None
        if provider is CUDA and CUDA.name not in onnxruntime.get_available_providers():
            return CUDA.install
        if provider is RTX and importlib.util.find_spec(RTX_PLUGIN) is None:
            return RTX.install
        cuda.driver()
        if provider is RTX:
            _rtx_devices()
    except UserError as error:
        return str(error)
    return None


def _unable(provider: Provider, bundle: Bundle, precision: str | None) -> str | None:
    graph = bundle.graph_name(precision)
    if graph not in bundle.manifest["files"]:
        return f"the bundle holds no {graph}: python -m export engine BUNDLE --precision {precision}"
    if provider is CPU and precision == "bf16":
        return "its CPU kernels have no bfloat16"
    return missing(bundle.folder, graph)


def _open(provider: Provider, bundle: Bundle, precision: str | None, outputs: Sequence[str]) -> Session:
    path, content = _read(bundle, bundle.graph_name(precision))
    arguments = (path, outputs, provider, precision or "fp32")
    session = None
    if provider is CUDA and not outputs:
        with contextlib.suppress(UserError):  # a graph that cannot be captured runs all the same
            session = Session(*arguments, capture=True, content=content)
    session = session or Session(*arguments, content=content)
    check_declared(bundle, session.takes, path.name)
    return session


def _open_graph(provider: Provider, bundle: Bundle, file: str) -> Session:
    path, content = _read(bundle, file)
    return Session(path, (), provider, content=content)


def _read(bundle: Bundle, name: str) -> tuple[Path, bytes | None]:
    """A graph's file and, where its weights are in it, its content, verified."""
    if any(data.name in bundle.manifest["files"] for data in weights_beside(Path(name))):
        return bundle.graph(name), None
    return bundle.folder / name, bundle.read(name)


def _backend(name: str, rank: int, provider: Provider) -> Backend:
    return Backend(
        name,
        rank,
        partial(_lacks, provider),
        partial(_unable, provider),
        partial(_open, provider),
        partial(_open_graph, provider),
        provider is not CPU,
    )


BACKENDS = (
    _backend("onnxrt-tensorrt-rtx", 10, RTX),
    _backend("onnxrt-cuda", 20, CUDA),
    _backend("onnxrt", 30, CPU),
)
