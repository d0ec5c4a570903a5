"""The few calls of the CUDA driver API that an engine needs, through ctypes.

The driver's library comes with every NVIDIA driver, on a Jetson as on a PC, and its calls keep their names and
signatures over versions: nothing has to be installed for it, and no CUDA version has to match. Pointers and handles are
plain ints. Source: CUDA Driver API reference.
"""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from math import prod
from typing import Any

import numpy as np

from edge_sampler.runtime.errors import UserError

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate while one captures
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING

_POINTER, _SIZE, _INT, _TEXT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
SIGNATURES: dict[str, tuple[Any, ...]] = {  # each returns a CUresult
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuGetErrorString": (_INT, ctypes.POINTER(_TEXT)),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (_TEXT, _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxSetCurrent": (_POINTER,),
    "cuMemGetInfo_v2": (ctypes.POINTER(_SIZE), ctypes.POINTER(_SIZE)),
    "cuMemAlloc_v2": (ctypes.POINTER(_POINTER), _SIZE),
    "cuMemFree_v2": (_POINTER,),
    "cuMemAllocHost_v2": (ctypes.POINTER(_POINTER), _SIZE),
    "cuMemFreeHost": (_POINTER,),
    "cuMemcpyHtoDAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuMemcpyDtoHAsync_v2": (_POINTER, _POINTER, _SIZE, _POINTER),
    "cuStreamCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuStreamSynchronize": (_POINTER,),
    "cuStreamDestroy_v2": (_POINTER,),
    "cuStreamBeginCapture_v2": (_POINTER, _INT),
    "cuStreamEndCapture": (_POINTER, ctypes.POINTER(_POINTER)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_POINTER), _POINTER, ctypes.c_ulonglong),
    "cuGraphLaunch": (_POINTER, _POINTER),
    "cuGraphDestroy": (_POINTER,),
    "cuGraphExecDestroy": (_POINTER,),
    "cuEventCreate": (ctypes.POINTER(_POINTER), ctypes.c_uint),
    "cuEventRecord": (_POINTER, _POINTER),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _POINTER, _POINTER),
    "cuEventDestroy_v2": (_POINTER,),
}


class CudaError(UserError):
    """A call that failed; ``code`` is its CUresult."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message, code)  # as another process calls it again, to which it is sent
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


class OutOfMemoryError(CudaError):
    """The device, or the host's pinned memory, has no room left."""


@cache
def driver(path: str = LIBRARY) -> ctypes.CDLL:
    """The driver's library, initialised. Raises UserError where there is none, or it finds no GPU."""
    try:
        library = ctypes.CDLL(path)
        for name, arguments in SIGNATURES.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise UserError(f"no usable NVIDIA driver here ({error}): install one, or take the backend onnxrt") from error
    code = library.cuInit(0)
    if code:
        raise UserError(f"the NVIDIA driver finds no GPU (cuInit: CUDA error {code})")
    return library


def call(name: str, *arguments: Any) -> None:
    """Raises OutOfMemoryError or CudaError, with the driver's own words, when the call fails."""
    code = getattr(driver(), name)(*arguments)
    if code == 0:
        return
    words = ctypes.c_char_p()
    driver().cuGetErrorString(code, ctypes.byref(words))
    message = f"{name} failed: {(words.value or b'unknown error').decode()} (CUDA error {code})"
    raise OutOfMemoryError(message, code) if code == OUT_OF_MEMORY else CudaError(message, code)


def _made(name: str, *arguments: Any, kind: Any = ctypes.c_void_p) -> int:
    """What a call returns through its first argument."""
    made = kind()
    call(name, ctypes.byref(made), *arguments)
    return made.value or 0


class Device:
    """A GPU, through its primary context, which the engine library uses as well; closed when all else is freed."""

    def __init__(self, ordinal: int = 0) -> None:
        self._device = _made("cuDeviceGet", ordinal, kind=ctypes.c_int)
        self._context = _made("cuDevicePrimaryCtxRetain", self._device)
        self.enter()

    def close(self) -> None:
        """Others may use the GPU after us: this thread must not keep a context that may be gone."""
        call("cuCtxSetCurrent", None)
        call("cuDevicePrimaryCtxRelease_v2", self._device)

    def enter(self) -> None:
        """Makes this GPU the calling thread's: contexts are current for one thread only."""
        call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode()

    @property
    def capability(self) -> str:
        """Compute capability, as ``sm89``."""
        major, minor = (
            _made("cuDeviceGetAttribute", attribute, self._device, kind=ctypes.c_int)
            for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR)
        )
        return f"sm{major}{minor}"

    @property
    def memory(self) -> int:
        """Bytes that it has, free or not; on a Jetson those of the whole machine."""
        return _memory()[1]

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def version() -> str:
    """Of CUDA, the latest that the driver knows, such as 12.6."""
    number = _made("cuDriverGetVersion", kind=ctypes.c_int)
    return f"{number // 1000}.{number % 1000 // 10}"


def used_memory() -> int:
    """Bytes of the first GPU's memory in use, by every process."""
    with Device():
        free, total = _memory()
    return total - free


def _memory() -> tuple[int, int]:
    """Bytes of the thread's GPU that are free, and all."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return free.value, total.value


class Memory(ExitStack):
    """Owns what is made on a device; ``close`` frees all of it, in reverse, whatever fails on the way."""

    def _owned(self, handle: int, free: str) -> int:
        self.callback(call, free, handle)
        return handle

    def device(self, size: int) -> int:
        """``size`` bytes of device memory: their address."""
        return self._owned(_made("cuMemAlloc_v2", size), "cuMemFree_v2")

    def pinned(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
        """Page-locked host memory as an array; copies to and from it run beside the host. Dies with this owner."""
        size = prod(shape) * dtype.itemsize
        address = self._owned(_made("cuMemAllocHost_v2", size), "cuMemFreeHost")
        return np.ndarray(shape, dtype, buffer=memoryview((ctypes.c_byte * size).from_address(address)))

    def stream(self) -> int:
        return self._owned(_made("cuStreamCreate", NON_BLOCKING), "cuStreamDestroy_v2")

    def event(self) -> int:
        return self._owned(_made("cuEventCreate", 0), "cuEventDestroy_v2")

    def executable(self, graph: int) -> int:
        """A captured graph, ready for ``cuGraphLaunch``; the capture itself is freed here."""
        try:
            return self._owned(_made("cuGraphInstantiateWithFlags", graph, 0), "cuGraphExecDestroy")
        finally:
            call("cuGraphDestroy", graph)


def begin_capture(stream: int) -> None:
    call("cuStreamBeginCapture_v2", stream, THREAD_LOCAL)


def end_capture(stream: int) -> int:
    """The graph captured. Raises CudaError when something in between could not be captured."""
    graph = ctypes.c_void_p()
    call("cuStreamEndCapture", stream, ctypes.byref(graph))
    return graph.value or 0


def elapsed(start: int, end: int) -> float:
    """Seconds between two recorded events."""
    return float(_made("cuEventElapsedTime", start, end, kind=ctypes.c_float)) / 1e3
