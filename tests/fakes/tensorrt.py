"""A TensorRT without a GPU, for tests: its plans are ONNX graphs, which ONNX Runtime runs on the fake driver's memory.

``make`` gives a module that offers what TensorRT's does, as far as running an engine goes, and records what is asked.
``test_trt.py`` holds its names against those of the real TensorRT-RTX.
"""

import ctypes
import threading
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

TYPES = {
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}
LARGEST = 64  # the profile of every axis that is open


def make(driver: ctypes.CDLL, version: str, rtx: bool) -> Any:
    """The module, of TensorRT or of TensorRT-RTX; ``calls`` lists what it was asked, ``spoil`` what it shall refuse."""
    calls: list[str] = []
    spoil: set[str] = set()

    class ILogger:
        Severity = SimpleNamespace(VERBOSE="VERBOSE", ERROR="ERROR")

        def __init__(self) -> None: ...

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> "ICudaEngine | None":
            calls.append("deserialize")
            if "deserialize" not in spoil:
                return ICudaEngine(plan)
            self.logger.log("ERROR", "the plan is of another kind")
            return None

    class ICudaEngine:
        def __init__(self, plan: bytes) -> None:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self.session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
            self.values = [*self.session.get_inputs(), *self.session.get_outputs()]
            self.num_io_tensors = len(self.values)

        def get_tensor_name(self, index: int) -> str:
            return str(self.values[index].name)

        def get_tensor_shape(self, name: str) -> list[int]:
            return [size if isinstance(size, int) else -1 for size in self._value(name).shape]

        def get_tensor_mode(self, name: str) -> str:
            return "INPUT" if name in {value.name for value in self.session.get_inputs()} else "OUTPUT"

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
            open_shape = self.get_tensor_shape(name)
            return [[open_size if size < 0 else size for size in open_shape] for open_size in (1, 1, LARGEST)]

        def get_tensor_dtype(self, name: str) -> Any:
            return TYPES[self._value(name).type]

        def create_runtime_config(self) -> Any:
            return IRuntimeConfig()

        def create_execution_context(self, *configuration: Any) -> "IExecutionContext | None":
            calls.append(f"context {len(configuration)}")
            return None if "context" in spoil else IExecutionContext(self)

        def _value(self, name: str) -> Any:
            return next(value for value in self.values if value.name == name)

    class IExecutionContext:
        """Each may be used by one thread at a time: two at once are an error."""

        def __init__(self, engine: ICudaEngine) -> None:
            self.engine, self.busy = engine, threading.Lock()
            self.addresses: dict[str, int] = {}
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.work = ctypes.CFUNCTYPE(None)(self._run)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self.shapes[name] = tuple(shape)
            return "shape" not in spoil

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            """An output's follows from the names of its axes."""
            if name in self.shapes:
                return self.shapes[name]
            sizes: dict[Any, int] = {}
            for value in self.engine.session.get_inputs():
                sizes |= zip(value.shape, self.shapes[value.name], strict=True)
            return tuple(sizes.get(axis, axis) for axis in self.engine._value(name).shape)

        def execute_async_v3(self, stream_handle: int) -> bool:
            calls.append("execute")
            if "capture" in spoil and calls.count("execute") > 1:
                driver.fake_spoil_capture(stream_handle)
                return False
            driver.fake_enqueue(stream_handle, ctypes.cast(self.work, ctypes.c_void_p))
            return "execute" not in spoil

        def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
            dtype = np.dtype(self.engine.get_tensor_dtype(name))
            size = int(np.prod(shape)) * dtype.itemsize
            memory = memoryview((ctypes.c_byte * size).from_address(self.addresses[name]))
            return np.ndarray(shape, dtype, buffer=memory)

        def _run(self) -> None:
            assert self.busy.acquire(blocking=False), "two threads in one execution context"
            feed = {name: self._array(name, shape).copy() for name, shape in self.shapes.items()}
            for value, result in zip(
                self.engine.session.get_outputs(), self.engine.session.run(None, feed), strict=True
            ):
                self._array(value.name, result.shape)[:] = result
            self.busy.release()

    class IRuntimeCache:
        def serialize(self) -> bytes:
            return b"kernels"

        def deserialize(self, blob: bytes) -> bool:
            calls.append(f"cache {blob!r}")
            return True

    class IRuntimeConfig:
        dynamic_shapes_kernel_specialization_strategy: Any = None

        def create_runtime_cache(self) -> IRuntimeCache:
            return IRuntimeCache()

        def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
            return True

    offered: dict[str, Any] = {
        "ILogger": ILogger,
        "Runtime": Runtime,
        "ICudaEngine": ICudaEngine,
        "IExecutionContext": IExecutionContext,
        "Builder": object,
        "TensorIOMode": SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        "nptype": lambda trt_type: trt_type,
    }
    if rtx:
        offered |= {"IRuntimeCache": IRuntimeCache, "IRuntimeConfig": IRuntimeConfig}
        offered["DynamicShapesKernelSpecializationStrategy"] = SimpleNamespace(EAGER="EAGER")
    spec = ModuleSpec("tensorrt", None)  # PyTorch looks at it
    return SimpleNamespace(__version__=version, __spec__=spec, calls=calls, spoil=spoil, **offered)
