"""TensorRT and TensorRT-RTX, whose Python APIs are nearly one: an engine of a bundle, run without PyTorch."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import astuple
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends.base import Backend, Spans
from edge_sampler.runtime.backends.feeds import check_feed, split, tensor_names, wanted_by
from edge_sampler.runtime.backends.runtime_cache import RuntimeCache
from edge_sampler.runtime.backends.tensorrt_module import Library, library, logger, version
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import LIBRARIES, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.verified import missing

if TYPE_CHECKING:
    import tensorrt

PREFERENCE = ("fp16", "bf16", "fp32")  # which to take when none is asked for; others last
MOST_LANES = 32  # kept while nobody runs them; each holds buffers and a CUDA graph for inputs of one size

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of an engine's inputs, by name


def preferred(engine: Engine) -> tuple[int, bool]:
    """What to sort engines by: those that run fastest come first, and of equal ones the first in the manifest."""
    return (*PREFERENCE, engine.precision).index(engine.precision), engine.loop


def find_engine(bundle: Bundle, flavour: str, precision: str | None, capability: str | None) -> Engine:
    """The bundle's engine of that flavour that fits the installed library and the GPU (None: any).

    Raises UserError saying what the engines there need and what was found.
    """
    engines = [e for e in bundle.engines if e.flavour == flavour and precision in (None, e.precision)]
    engines.sort(key=preferred)
    if not engines:
        of = f"{precision} " if precision else ""
        raise UserError(f"the bundle holds no {of}engine for it: python -m export engine BUNDLE --engine {flavour}")
    reasons = {engine: engine.unfit(version(flavour), capability) for engine in engines}
    for engine, reason in reasons.items():
        if reason is None:
            return engine
    raise UserError("; ".join(filter(None, reasons.values())))


class Session:
    """One engine, loaded on the first GPU. Each thread that runs it at the same time gets an execution context."""

    def __init__(self, bundle: Bundle, engine: Engine, most_lanes: int = MOST_LANES) -> None:
        self._lib = library(engine.flavour)
        blob = bundle.read(engine.file)  # its hash is verified: deserialising an engine runs what is in it
        with ExitStack() as undo:
            self._device = cuda.Device()
            undo.callback(self._device.close)
            self._runtime = self._lib.Runtime(logger(engine.flavour))
            assert not self._runtime.engine_host_code_allowed
            self._engine = self._runtime.deserialize_cuda_engine(blob)
            if self._engine is None:
                raise UserError(f"{engine.flavour} cannot load {engine.file}: {logger(engine.flavour).last_error()}")
            self._cache = RuntimeCache(bundle, engine, self._device)
            self.description = f"{engine.flavour} {engine.version}, {self._device.name}, {engine.file}"
            self._wanted = wanted_by(self._lib, self._engine)
            undo.pop_all()
        self._batch, self.precision, self._most_lanes = engine.batch, engine.precision, most_lanes
        self.largest_batch: int | None = engine.batch.max
        self._lock, self._lanes, self._closed = threading.Lock(), list[Lane](), False
        self._idle: OrderedDict[Shapes, list[Lane]] = OrderedDict()  # the latest used last

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        parts: list[dict[str, np.ndarray]] = []
        for part, count in self._split(feed):
            with self._lane(part) as lane:
                parts.append({name: array[:count] for name, array in lane.run(part)[0].items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def spans(self, feed: Mapping[str, np.ndarray]) -> Spans | None:
        times: list[Spans] = []
        for part, _ in self._split(feed):
            with self._lane(part) as lane:
                times.append(lane.run(part)[1])
        return Spans(*(sum(span) for span in zip(*map(astuple, times), strict=True)))

    def _split(self, feed: Mapping[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        """Pieces that the engine takes. Raises UserError, before anything runs, for a feed that it does not."""
        if self._closed:
            raise UserError(f"{self.description} is closed")
        check_feed(feed, self._wanted)
        return split(feed, self._batch)

    @property
    def captured_batches(self) -> set[int]:
        """Batch sizes that run as CUDA graphs by now."""
        return {lane.batch for lane in self._lanes if lane.graph is not None}

    @contextmanager
    def _lane(self, part: Mapping[str, np.ndarray]) -> Iterator["Lane"]:
        """A lane for inputs of these sizes, which no other thread uses meanwhile."""
        shapes = tuple((name, array.shape) for name, array in sorted(part.items()))
        self._device.enter()
        with self._lock:
            idle = self._idle.setdefault(shapes, [])
            if not idle:
                self._drop_idle()
                idle.append(Lane(self._lib, self._engine, shapes, self._cache))
                self._lanes.append(idle[0])
            lane = idle.pop()
        try:
            yield lane
        finally:
            with self._lock:
                self._idle.setdefault(shapes, []).append(lane)
                self._idle.move_to_end(shapes)

    def _drop_idle(self) -> None:
        """Makes room for one more lane: those go that nobody has used for longest."""
        for shapes in list(self._idle):
            while len(self._lanes) >= self._most_lanes and self._idle[shapes]:
                lane = self._idle[shapes].pop(0)
                self._lanes.remove(lane)
                lane.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._closed:
            return
        self._closed = True
        self._device.enter()
        if exception[0] is None:
            self._cache.save()
        with ExitStack() as freed:  # in reverse, whatever fails on the way
            freed.callback(self._device.close)
            freed.callback(self._forget)
            for lane in self._lanes:
                freed.callback(lane.close)

    def _forget(self) -> None:
        self._lanes.clear()
        self._idle.clear()
        self._cache.forget()
        del self._engine, self._runtime


class Lane:
    """What one thread needs for inputs of one size: an execution context, its stream, buffers and captured CUDA graph.

    One size each, since a graph is valid only while its context stays as it was when captured.
    """

    def __init__(
        self, lib: Library, engine: "tensorrt.ICudaEngine", shapes: Shapes, runtime_cache: "RuntimeCache"
    ) -> None:
        self.batch, self._warm = shapes[0][1][0], False
        self.graph: int | None = None
        self._context = runtime_cache.make_context(lib, engine)
        self._memory = cuda.Memory()
        try:
            self._stream = self._memory.stream()
            self._events = [self._memory.event() for _ in range(4)]
            self._host: dict[str, np.ndarray] = {}
            self._address: dict[str, int] = {}
            for name, shape in shapes:
                if not self._context.set_input_shape(name, shape):
                    raise UserError(f"{name} {list(shape)} is beyond what the engine was built for")
            for name in tensor_names(engine):
                dims = self._context.get_tensor_shape(name)  # outputs' as well, now that all inputs' are set
                shape = tuple(int(dims[axis]) for axis in range(len(dims)))
                dtype = np.dtype(lib.nptype(engine.get_tensor_dtype(name)))
                self._host[name] = self._memory.pinned(shape, dtype)
                self._address[name] = self._memory.device(self._host[name].nbytes)
                self._context.set_tensor_address(name, self._address[name])
        except BaseException:
            self.close()
            raise

    def run(self, feed: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Spans]:
        """One batch of the lane's size; and what the GPU's clock says of it."""
        for name, array in feed.items():
            self._host[name][:] = array
        cuda.call("cuEventRecord", self._events[0], self._stream)
        for name in feed:
            host = self._host[name]
            cuda.call("cuMemcpyHtoDAsync_v2", self._address[name], host.ctypes.data, host.nbytes, self._stream)
        cuda.call("cuEventRecord", self._events[1], self._stream)
        self._compute()
        cuda.call("cuEventRecord", self._events[2], self._stream)
        outputs = [name for name in self._host if name not in feed]
        for name in outputs:
            host = self._host[name]
            cuda.call("cuMemcpyDtoHAsync_v2", host.ctypes.data, self._address[name], host.nbytes, self._stream)
        cuda.call("cuEventRecord", self._events[3], self._stream)
        cuda.call("cuStreamSynchronize", self._stream)
        spans = Spans(*(cuda.elapsed(start, end) for start, end in zip(self._events, self._events[1:], strict=False)))
        return {name: self._host[name].copy() for name in outputs}, spans

    def _compute(self) -> None:
        """Enqueues the engine: the first time as it is, to warm up; then captured as a CUDA graph, and replayed."""
        if self.graph is not None:
            cuda.call("cuGraphLaunch", self.graph, self._stream)
            return
        if not self._context.execute_async_v3(self._stream):
            raise UserError("the engine library could not run the engine: is there enough device memory?")
        if not self._warm:
            self._warm = True
            cuda.call("cuStreamSynchronize", self._stream)
            self.graph = self._captured()

    def _captured(self) -> int | None:
        """One run of the engine as a CUDA graph, or None when it does something that cannot be captured."""
        cuda.begin_capture(self._stream)
        enqueued = self._context.execute_async_v3(self._stream)
        try:
            graph = self._memory.executable(cuda.end_capture(self._stream))
        except cuda.CudaError:
            return None
        return graph if enqueued else None

    def close(self) -> None:
        del self._context  # before its buffers
        self._memory.close()


def _lacks(flavour: str) -> str | None:
    try:
        library(flavour)
        cuda.driver()
    except UserError as error:
        return str(error)
    return None


def _unable(flavour: str, bundle: Bundle, precision: str | None) -> str | None:
    try:
        find_engine(bundle, flavour, precision, None)
        return missing(bundle.folder, _engine(flavour, bundle, precision).file)
    except UserError as error:
        return str(error)


def _open(flavour: str, bundle: Bundle, precision: str | None, outputs: Sequence[str]) -> Session:
    if outputs:
        raise UserError(f"an engine gives its images alone; {flavour} cannot return {', '.join(outputs)}")
    return Session(bundle, _engine(flavour, bundle, precision))


def _engine(flavour: str, bundle: Bundle, precision: str | None) -> Engine:
    with cuda.Device() as device:
        return find_engine(bundle, flavour, precision, device.capability)


def _precision(flavour: str, bundle: Bundle, precision: str | None) -> str:
    return _engine(flavour, bundle, precision).precision


BACKENDS = tuple(
    Backend(
        flavour,
        rank,
        partial(_lacks, flavour),
        partial(_unable, flavour),
        partial(_open, flavour),
        None,
        True,
        partial(_precision, flavour),
    )
    for rank, flavour in enumerate(LIBRARIES)
)
