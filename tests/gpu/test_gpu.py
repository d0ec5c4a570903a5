"""What only a GPU can show. Times are measured and printed, never asserted."""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import runtime
from export.engine import plan_engine
from export.engine_command import Additions, add
from models.zoo import load
from runtime import cuda
from runtime.backends import BACKENDS, trt
from runtime.bench import UNROLLED, Timing, alternate, bench
from runtime.bundle import Bundle
from runtime.engines import LIBRARIES, PRECISIONS, Batch
from runtime.errors import UserError
from runtime.noise import unit_noise
from runtime.plan import sample
from tests.conftest import export
from tests.gpu.conftest import Measured

GPU_BACKENDS = tuple(name for name in BACKENDS if name != "onnxrt")
PROFILE = Batch(1, 4, 16)
SEEDS = range(16)


def require_gpu() -> None:
    try:
        cuda.driver()
    except UserError as error:
        pytest.skip(str(error))


def require(folder: Path, backend: str, precision: str) -> Bundle:
    """The bundle, with the graph and the engine that the backend needs; skips, saying why, where it cannot run."""
    try:
        if precision != "fp32" and precision not in Bundle.open(folder).manifest.get("precisions", {}):
            add(Bundle.open(folder), Additions(precision, None, None))
        if backend in LIBRARIES:
            with cuda.Device() as device:
                engine = plan_engine(backend, device.capability, precision, PROFILE)
            if engine not in Bundle.open(folder).engines:
                add(Bundle.open(folder), Additions(precision, None, engine))
    except UserError as error:
        pytest.skip(f"{backend}: {error}")
    bundle = Bundle.open(folder)
    if reason := BACKENDS[backend].unable(bundle, precision):
        pytest.skip(f"{backend}: {reason}")
    return bundle


@pytest.fixture(scope="session")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """edm-digits at NFE 10; the tests add their engines to it."""
    require_gpu()
    out = tmp_path_factory.mktemp("gpu") / "digits"
    export("--model", "edm-digits", "--nfe", "10", "--solver", "ipndm", "--check", "0", "--out", str(out))
    return out


@pytest.fixture(scope="session")
def expected(digits_bundle: Path) -> np.ndarray:
    """PyTorch's images of SEEDS, float32 on the CPU."""
    model, plan = load("edm-digits"), Bundle.open(digits_bundle).plan
    noise = torch.from_numpy(unit_noise(SEEDS, model.spec.shape))
    with torch.inference_mode():
        images: torch.Tensor = sample(model, noise, plan)
    return images.numpy()


def row(model: str, what: str, precision: str, timing: Timing, difference: np.ndarray | None) -> tuple[str, ...]:
    errors = ("", "")
    if difference is not None:
        errors = (f"{np.sqrt(np.mean(np.square(difference))):.1e}", f"{np.abs(difference).max():.1e}")
    times = (f"{timing.throughput:.1f}", f"{timing.percentile(50) * 1e3:.3f}", f"{timing.percentile(99) * 1e3:.3f}")
    return (model, what, precision, str(timing.batch), *times, *errors, f"{timing.memory / 1e6:.0f}")


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("backend", GPU_BACKENDS)
def test_images_are_pytorchs(
    backend: str, precision: str, batch: int, digits_bundle: Path, expected: np.ndarray, measured: Measured
) -> None:
    bundle = require(digits_bundle, backend, precision)
    with runtime.load(digits_bundle, backend, precision) as sampler:
        images = sampler.sample(SEEDS)
        alone = sampler.sample([SEEDS[5]])
        split = sampler.sample(SEEDS, batch=3)
    tolerance = bundle.tolerance(precision) * np.abs(expected).max()
    np.testing.assert_allclose(images, expected, atol=tolerance)
    np.testing.assert_allclose(alone, expected[5:6], atol=tolerance)
    np.testing.assert_allclose(split, expected, atol=tolerance)
    what, timings, _ = bench(bundle, batch, 3, backend, precision=precision)
    timing = next(timing for timing in timings if timing.name == UNROLLED)
    measured.rows.append(row("edm-digits", what.split(", engines")[0], precision, timing, images - expected))


@pytest.mark.parametrize("backend", LIBRARIES)
def test_threads_leaks_graphs_and_kernels(
    backend: str, digits_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path))
    bundle = require(digits_bundle, backend, "fp16")
    engine = trt.find_engine(bundle, backend, "fp16", None)
    with runtime.load(digits_bundle, backend, "fp16") as sampler, ThreadPoolExecutor(4) as pool:
        once = sampler.sample(SEEDS)
        for images in pool.map(lambda _: sampler.sample(SEEDS), range(16)):
            np.testing.assert_allclose(images, once, atol=bundle.tolerance("fp16"))
    with trt.Session(bundle, engine) as session:
        for _ in range(2):
            session.run({"noise": unit_noise(range(4), bundle.shape)})
        assert session.captured_batches == {4}
    assert (tmp_path / "rtx-kernels").is_dir() == (backend == "tensorrt-rtx")
    used = []
    for _ in range(10):
        with trt.Session(bundle, engine) as session:
            session.run({"noise": unit_noise(range(4), bundle.shape)})
        used.append(cuda.used_memory())
    assert used[-1] <= used[2] + 2**20  # the first rounds load kernels, which the driver keeps


@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_loop_makes_the_same_images(backend: str, digits_bundle: Path, expected: np.ndarray, tmp_path: Path) -> None:
    require(digits_bundle, backend, "fp32")
    folder = Path(shutil.copytree(digits_bundle, tmp_path / "loop", ignore=shutil.ignore_patterns("engines")))
    with cuda.Device() as device:
        engine = plan_engine(backend, device.capability, "fp32", PROFILE, loop=True)
    add(Bundle.open(folder), Additions("fp32", None, engine))
    with trt.Session(Bundle.open(folder), engine) as session:
        images = session.run({"noise": unit_noise(SEEDS, Bundle.open(folder).shape)})["images"]
    np.testing.assert_allclose(images, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("backend", LIBRARIES)
def test_classes_and_uint8(backend: str, conditional: Path, tmp_path: Path) -> None:
    require_gpu()
    folder = Path(shutil.copytree(conditional, tmp_path / "conditional"))
    require(folder, backend, "fp32")
    labels = [0, 1, 2, -1]
    with runtime.load(folder, "onnxrt") as sampler, runtime.load(folder, backend, "fp32") as engine:
        graph, found = sampler.sample(range(4), labels), engine.sample(range(4), labels)
    assert np.abs(found.astype(int) - graph).max() <= 1


@pytest.mark.parametrize("backend", LIBRARIES)
def test_a_full_gpu_is_one_line(backend: str, digits_bundle: Path) -> None:
    bundle = require(digits_bundle, backend, "fp16")
    with cuda.Device(), cuda.Memory() as memory:
        size = 2**30
        while size > 2**16:  # take what there is
            try:
                memory.device(size)
            except cuda.OutOfMemoryError:
                size //= 2
        with pytest.raises(UserError, match="memory"), runtime.load(digits_bundle, backend, "fp16") as sampler:
            sampler.sample(SEEDS)
    with runtime.load(digits_bundle, backend, "fp16") as sampler:
        assert np.isfinite(sampler.sample([0])).all()
    assert bundle.engines


def test_cifar10_beside_pytorch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, measured: Measured
) -> None:
    """Batch 1, NFE 10: PyTorch's loops, the host loop, the unrolled engines, and the limit, in one table."""
    if not request.config.getoption("--cifar10"):
        pytest.skip("slow: pass --cifar10")
    require_gpu()
    if not torch.cuda.is_available():
        pytest.skip("PyTorch was built without CUDA")
    folder = tmp_path_factory.mktemp("gpu") / "cifar10"
    export("--model", "edm-cifar10", "--random-weights", "--nfe", "10", "--solver", "ipndm", "--out", str(folder))
    bundle = Bundle.open(folder)
    paths, flops = pytorch_loops(bundle)
    loops = {
        name: Timing(name, 1, tuple(seconds for turn in turns for seconds in turn))
        for name, turns in alternate(paths, 3).items()
    }
    loops["FLOPs over the matrix rate fp16"] = Timing("limit", 1, (flops / matrix_rate(),))
    for name, timing in loops.items():
        path, precision = name.rsplit(" ", maxsplit=1)
        measured.rows.append(row("edm-cifar10", path, precision, timing, None))
    for backend in GPU_BACKENDS:
        for precision in ("fp32", "fp16"):
            try:
                bundle = require(folder, backend, precision)
            except pytest.skip.Exception:
                continue
            what, timings, _ = bench(bundle, 1, 3, backend, precision=precision)
            for timing in timings:
                name = f"{what.split(', engines')[0]}, {timing.name}"
                measured.rows.append(row("edm-cifar10", name, precision, timing, None))


def pytorch_loops(bundle: Bundle) -> tuple[dict[str, Callable[[], None]], int]:
    """PyTorch's eager loop in float32 and its compiled loop in float16; and the FLOPs of one image."""
    from torch.utils.flop_counter import FlopCounterMode

    model = load("edm-cifar10", random_weights=True).cuda()
    noise = torch.from_numpy(unit_noise([0], bundle.shape)).cuda()
    compiled = torch.compile(model, mode="max-autotune")

    def loop(denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], half: bool) -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            sample(lambda x, sigma: denoise(x, torch.tensor(sigma, device="cuda")).clone(), noise, bundle.plan)
        torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        loop(model, half=False)
    return {
        "PyTorch eager loop fp32": lambda: loop(model, half=False),
        "torch.compile max-autotune loop fp16": lambda: loop(compiled, half=True),
    }, counter.get_total_flops()


def matrix_rate() -> float:
    """FLOP/s of large float16 matrix products."""
    size, products = 4096, 50
    square = torch.randn(size, size, device="cuda", dtype=torch.float16)
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(products):
            square @ square
        torch.cuda.synchronize()
    return products * 2 * size**3 / (time.perf_counter() - started)
