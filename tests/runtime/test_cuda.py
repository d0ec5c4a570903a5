"""The CUDA layer: what it makes it frees, and what fails says so, on a driver that counts and fails on demand."""

import ctypes
import pickle
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.runtime import cuda
from edge_sampler.runtime.errors import UserError

FLOAT = np.dtype(np.float32)
MADE = ("cuMemAlloc_v2", "cuMemAllocHost_v2", "cuStreamCreate")  # by the function below, in that order


def round_trip() -> None:
    """Numbers to the device and back."""
    with cuda.Device() as device, cuda.Memory() as memory:
        device.enter()
        numbers = np.arange(6, dtype=FLOAT).reshape(2, 3)
        address = memory.device(numbers.nbytes)
        there, back = memory.pinned((2, 3), FLOAT), memory.pinned((2, 3), FLOAT)
        stream = memory.stream()
        there[:] = numbers
        cuda.call("cuMemcpyHtoDAsync_v2", address, there.ctypes.data, there.nbytes, stream)
        cuda.call("cuMemcpyDtoHAsync_v2", back.ctypes.data, address, back.nbytes, stream)
        cuda.call("cuStreamSynchronize", stream)
        np.testing.assert_array_equal(back, numbers)


def test_numbers_go_to_the_device_and_back(fake_cuda: ctypes.CDLL) -> None:
    round_trip()


@pytest.mark.parametrize("name", [*MADE, "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"])
def test_a_failing_call_is_named_and_leaks_nothing(fake_cuda: ctypes.CDLL, name: str) -> None:
    fake_cuda.fake_fail(name.encode(), 0, 700)
    with pytest.raises(cuda.CudaError, match=rf"{name} failed: made to fail \(CUDA error 700\)") as raised:
        round_trip()
    assert raised.value.code == 700
    sent = pickle.loads(pickle.dumps(raised.value))  # as workers of `generate` tell it
    assert (type(sent), str(sent), sent.code) == (cuda.CudaError, str(raised.value), 700)
    assert fake_cuda.fake_live() == 0


def test_the_second_of_two_allocations_may_fail(fake_cuda: ctypes.CDLL) -> None:
    fake_cuda.fake_fail(b"cuMemAllocHost_v2", 1, 2)
    with pytest.raises(cuda.OutOfMemoryError):
        round_trip()
    assert fake_cuda.fake_live() == 0


def test_out_of_memory_is_an_error_of_its_own(fake_cuda: ctypes.CDLL) -> None:
    fake_cuda.fake_capacity(1000)
    with cuda.Device() as device, cuda.Memory() as memory:
        memory.device(600)
        assert cuda.used_memory() == 600
        device.enter()  # it has left this thread without one
        with pytest.raises(cuda.OutOfMemoryError, match="out of memory"):
            memory.device(600)
    assert cuda.used_memory() == 0


def test_a_device_tells_what_it_is(fake_cuda: ctypes.CDLL) -> None:
    with cuda.Device() as device:
        assert (device.name, device.capability) == ("Fake GPU", "sm86")


def test_a_capture_becomes_an_executable_graph(fake_cuda: ctypes.CDLL) -> None:
    runs: list[int] = []
    work = ctypes.CFUNCTYPE(None)(lambda: runs.append(1))
    with cuda.Device(), cuda.Memory() as memory:
        stream = memory.stream()
        cuda.begin_capture(stream)
        fake_cuda.fake_enqueue(stream, ctypes.cast(work, ctypes.c_void_p))
        graph = memory.executable(cuda.end_capture(stream))
        assert not runs
        for _ in range(3):
            cuda.call("cuGraphLaunch", graph, stream)
    assert len(runs) == 3


def test_a_capture_that_cannot_be_made_executable_is_freed(fake_cuda: ctypes.CDLL) -> None:
    fake_cuda.fake_fail(b"cuGraphInstantiateWithFlags", 0, 801)
    with cuda.Device(), cuda.Memory() as memory:
        stream = memory.stream()
        cuda.begin_capture(stream)
        with pytest.raises(cuda.CudaError):
            memory.executable(cuda.end_capture(stream))


def test_events_measure_seconds(fake_cuda: ctypes.CDLL) -> None:
    with cuda.Device(), cuda.Memory() as memory:
        stream, start, end = memory.stream(), memory.event(), memory.event()
        with pytest.raises(cuda.CudaError):
            cuda.elapsed(start, end)  # not recorded yet
        cuda.call("cuEventRecord", start, stream)
        cuda.call("cuEventRecord", end, stream)
        assert 0 <= cuda.elapsed(start, end) < 1


def test_no_driver_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no usable NVIDIA driver here .* install one, or take the backend onnxrt"):
        cuda.driver(str(tmp_path / "libcuda.so.1"))


def test_a_driver_without_a_gpu_is_one_clear_line(fake_cuda: ctypes.CDLL) -> None:
    fake_cuda.fake_fail(b"cuInit", 0, 100)
    with pytest.raises(UserError, match=r"finds no GPU .*100"):
        cuda.Device()


@pytest.mark.parametrize(("number", "told"), [(12060, "12.6"), (11080, "11.8"), (13000, "13.0"), (12110, "12.11")])
def test_the_drivers_number_is_a_release(number: int, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_made", lambda *_, **__: number)
    assert cuda.version() == told


def test_events_tell_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_made", lambda *_, **__: 2.5)
    assert cuda.elapsed(1, 2) == 0.0025


def test_a_capture_of_nothing_is_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "call", lambda *_: None)
    assert cuda.end_capture(1) == 0
