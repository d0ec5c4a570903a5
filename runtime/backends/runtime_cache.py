"""The kernels that TensorRT-RTX compiles for a GPU, kept between programs."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_sampler.runtime import cuda
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.engine_record import Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

if TYPE_CHECKING:
    import tensorrt


class RuntimeCache:
    """TensorRT-RTX compiles kernels for the GPU it meets; this keeps them, so that only the first load is slow.

    A file for each engine, release of the library and model of GPU, which is what the kernels fit, in the user's cache
    folder. Does nothing for TensorRT.
    """

    def __init__(self, bundle: Bundle, engine: Engine, device: cuda.Device) -> None:
        sha = bundle.manifest["files"][engine.file]["sha256"][:16]
        model = re.sub(r"[^A-Za-z0-9]+", "-", device.name)
        self._path: Path | None = None
        with suppress(UserError):  # without a folder nothing is kept
            self._path = cache_folder() / "rtx-kernels" / f"{sha}-{engine.version}-{model}.bin"
        self._cache: Any = None

    def make_context(self, lib: Any, engine: "tensorrt.ICudaEngine") -> "tensorrt.IExecutionContext":
        context = engine.create_execution_context(*self._configuration(lib, engine))
        if context is None:
            raise UserError("the engine library made no execution context: is there enough device memory?")
        return context

    def _configuration(self, lib: Any, engine: "tensorrt.ICudaEngine") -> list[Any]:
        if not hasattr(lib, "IRuntimeCache"):
            return []
        config: Any = engine.create_runtime_config()
        strategies = lib.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER  # compiled when warming up, not later
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            if self._path and self._path.is_file():
                self._cache.deserialize(self._path.read_bytes())
        config.set_runtime_cache(self._cache)
        return [config]

    def save(self) -> None:
        """Best effort: without it the next load is as slow as this one."""
        if self._cache is None or self._path is None:
            return
        with suppress(OSError, UserError), writable(self._path, force=True) as new:
            new.write_bytes(bytes(self._cache.serialize()))

    def forget(self) -> None:
        self._cache = None
