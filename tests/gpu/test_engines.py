"""Every way to run on a GPU: right images, whatever the batch; threads, memory, CUDA graphs and kept kernels."""

import platform
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler import runtime
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.compare import HALF_LEVEL
from edge_sampler.runtime.engine_record import LIBRARIES
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import as_floats
from tests.conftest import relative
from tests.gpu.conftest import GPU_BACKENDS, Equip, Expected, Measure

BACKEND = pytest.mark.parametrize("name", GPU_BACKENDS)
ENGINE = pytest.mark.parametrize("name", LIBRARIES)
PRECISION = pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
PROFILE = "1:4:16"
LEAK = 16e6  # bytes; ten of edm-digits' engines are more than twice that
SMALLEST = 2**20  # bytes; a device with less than that is full
SHARED = "this GPU may share the system's memory: it is not safe to fill it"


@BACKEND
@PRECISION
@pytest.mark.parametrize(("batch", "count"), [("1", 1), (PROFILE, 16)])
def test_images_are_those_of_pytorch(
    name: str, precision: str, batch: str, count: int, equip: Equip, pytorch: Expected, measure: Measure
) -> None:
    bundle = equip(name, precision, batch)
    expected, before = pytorch(bundle, count), cuda.used_memory()
    with runtime.load(bundle.folder, name, precision) as sampler:
        what = f"{name}: {sampler.description}"
        images = measure(what, precision, lambda: sampler.sample(range(count)), expected, before)
    assert images.dtype == np.float32
    assert relative(images, expected) <= bundle.tolerance(precision)


@BACKEND
@PRECISION
@pytest.mark.parametrize("batch", ["4", PROFILE])
def test_an_image_depends_on_its_seed_alone(
    name: str, precision: str, batch: str, equip: Equip, pytorch: Expected
) -> None:
    """Seven images are four and three: the three are padded in a static engine, and another shape in the other."""
    bundle = equip(name, precision, batch)
    expected, tolerance = pytorch(bundle, 7), bundle.tolerance(precision)
    with runtime.load(bundle.folder, name, precision) as sampler:
        for _ in range(3):  # as it is; captured; replayed, one shape after the other
            assert relative(sampler.sample(range(7), batch=4), expected) <= tolerance
            assert relative(sampler.sample([5]), expected[5:6]) <= tolerance


@BACKEND
def test_classes_and_uint8(name: str, equip: Equip, pytorch: Expected) -> None:
    bundle = equip(name, "fp32", "4", "classes")
    with runtime.load(bundle.folder, name, "fp32") as sampler:
        images = sampler.sample(range(6), 4, 1.0, **bundle.examples(6))
    assert images.dtype == np.uint8
    assert relative(as_floats(images), pytorch(bundle, 6).clip(-1, 1)) <= bundle.tolerance() + HALF_LEVEL


@BACKEND
def test_threads_make_the_same_images(name: str, equip: Equip) -> None:
    bundle = equip(name, "fp32", PROFILE)
    with runtime.load(bundle.folder, name, "fp32") as sampler, ThreadPoolExecutor(2) as pool:
        alone = [sampler.sample(range(k, k + 3)) for k in range(40)]
        together = list(pool.map(lambda k: sampler.sample(range(k, k + 3)), range(40)))
    np.testing.assert_allclose(together, alone, atol=1e-5)


@BACKEND
def test_closing_gives_the_memory_back(name: str, equip: Equip) -> None:
    bundle, used = equip(name, "fp32", PROFILE), list[int]()
    for _ in range(12):  # what the libraries keep for good, they take in the first two
        with runtime.load(bundle.folder, name, "fp32") as sampler:
            sampler.sample(range(4))
        used.append(cuda.used_memory())
    assert used[-1] - used[1] < LEAK, used


@BACKEND
@pytest.mark.skipif(platform.machine() == "aarch64", reason=SHARED)
def test_out_of_memory_is_one_error(name: str, equip: Equip) -> None:
    bundle, size = equip(name, "fp32", PROFILE), 2**40
    with cuda.Device(), cuda.Memory() as memory:
        while size >= SMALLEST:
            try:
                memory.device(size)
            except cuda.OutOfMemoryError:
                size //= 2
        with pytest.raises(UserError), runtime.load(bundle.folder, name, "fp32") as sampler:
            sampler.sample(range(4))
    with runtime.load(bundle.folder, name, "fp32") as sampler:  # once there is room again
        assert np.isfinite(sampler.sample(range(4))).all()


@ENGINE
@PRECISION
def test_runs_are_captured_as_cuda_graphs(name: str, precision: str, equip: Equip) -> None:
    bundle = equip(name, precision, PROFILE)
    opened: Any = BACKENDS[name].open(bundle, precision, ())
    with opened as session:
        first, *later = (session.run({"noise": np.ones((4, *bundle.inputs.sized()), np.float32)}) for _ in range(3))
        assert session.captured_batches == {4}, "the engine does something that cannot be captured"
    for again in later:
        np.testing.assert_array_equal(again["images"], first["images"])


def test_kernels_of_tensorrt_rtx_are_kept(equip: Equip, kept: Path) -> None:
    bundle, made = equip("tensorrt-rtx", "fp32", PROFILE), list[np.ndarray]()
    shutil.rmtree(kept / "rtx-kernels", ignore_errors=True)
    for _ in range(2):  # compiled and kept; read
        with runtime.load(bundle.folder, "tensorrt-rtx", "fp32") as sampler:
            made.append(sampler.sample([0]))
        (path,) = (kept / "rtx-kernels").iterdir()
        assert path.stat().st_size > 0
    np.testing.assert_allclose(made[0], made[1], atol=1e-5)
