"""edm-cifar10 with random weights, one image, ten evaluations: PyTorch, ONNX Runtime's loop, engines, and the limit."""

import time
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.flop_counter import FlopCounterMode

from edge_sampler import models, runtime
from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.bench import BASELINE, Timing, host_paths
from edge_sampler.runtime.cuda import used_memory
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample
from tests.gpu.conftest import GPU_BACKENDS, ROWS, Equip, Expected, Measure, Row

WIDTH, REPEATS = 8192, 10  # of the matrices that tell the GPU's rate
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
PRECISION = pytest.mark.parametrize("precision", DTYPES)


@pytest.fixture(autouse=True)
def _asked_for(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--cifar10", False):
        pytest.skip("takes long: ask for it with --cifar10")


@pytest.fixture
def denoiser() -> Denoiser:
    """On the GPU, in float32 and no less."""
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no GPU" if torch.version.cuda else "PyTorch is installed without CUDA")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return models.load("edm-cifar10", random_weights=True).cuda()


class Half(torch.nn.Module):
    """A network in float16 between float32 ends, as EDM's ``use_fp16``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.network(x.half(), noise.half()).float()


@pytest.mark.parametrize("what", ["PyTorch eager", "torch.compile, max-autotune"])
def test_pytorch(what: str, denoiser: Denoiser, equip: Equip, pytorch: Expected, measure: Measure) -> None:
    """The loop, from noise on the host to images on the host."""
    bundle, before, precision = equip("onnxrt", model="cifar10"), used_memory(), "fp32"
    sigmas = {sigma: torch.tensor([sigma], dtype=torch.float32, device="cuda") for sigma in bundle.plan.sigmas}
    model: Any = denoiser
    if what != "PyTorch eager":
        assert isinstance(denoiser, Preconditioned)
        denoiser.model, precision = Half(denoiser.model), "fp16"
        model = torch.compile(denoiser, mode="max-autotune")

    def run() -> np.ndarray:
        noise = torch.from_numpy(unit_noise([0], bundle.shape)).cuda()
        with torch.inference_mode():  # a result is copied, since the next replay of a CUDA graph writes over it
            return sample(lambda x, sigma: model(x, sigmas[sigma]).clone(), noise, bundle.plan).cpu().numpy()

    run()
    skips = counters["inductor"]["cudagraph_skips"]
    measure(what + " WITHOUT CUDA GRAPHS" * bool(skips), precision, run, pytorch(bundle, 1), before)


def test_onnx_runtime_host_loop(equip: Equip, pytorch: Expected, measure: Measure) -> None:
    bundle, backend = equip("onnxrt-cuda", model="cifar10"), BACKENDS["onnxrt-cuda"]
    expected, before = pytorch(bundle, 1), used_memory()
    assert backend.open_denoiser
    with backend.open_denoiser(bundle) as session:
        run: Any = host_paths(bundle, {"noise": unit_noise([0], bundle.shape)}, session)[BASELINE]
        measure("onnxrt-cuda: host loop", "fp32", run, expected, before)


@pytest.mark.parametrize("name", GPU_BACKENDS)
@PRECISION
def test_the_unrolled_graph(name: str, precision: str, equip: Equip, pytorch: Expected, measure: Measure) -> None:
    bundle = equip(name, precision, model="cifar10")
    expected, before = pytorch(bundle, 1), used_memory()
    with runtime.load(bundle.folder, name, precision) as sampler:
        measure(f"{name}: {sampler.description}", precision, lambda: sampler.sample([0]), expected, before)


@PRECISION
def test_the_limit(precision: str, denoiser: Denoiser, equip: Equip, request: pytest.FixtureRequest) -> None:
    """What the network's multiplications would take at the rate of large matrices."""
    bundle, seconds = equip("onnxrt", model="cifar10"), list[float]()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        denoiser(torch.zeros(1, *bundle.shape, device="cuda"), 1.0)
    flops = counter.get_total_flops() * bundle.plan.nfe
    a, b = torch.randn(2, WIDTH, WIDTH, device="cuda", dtype=DTYPES[precision])
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    rate = 2 * WIDTH**3 / median(seconds)
    what = f"limit: {flops / 1e9:.0f} GFLOP at {rate / 1e12:.1f} TFLOP/s"
    request.config.stash.setdefault(ROWS, []).append(Row(what, precision, Timing(what, 1, (flops / rate,))))
