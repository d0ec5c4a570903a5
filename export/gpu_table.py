"""Times every way to run a bundle on this machine's GPU, PyTorch's own among them, from noise on the host to images.

python -m export --model edm-cifar10 --random-weights --nfe 10 --solver ipndm --check 0 --precision fp16 --out cifar10
python -m export.gpu_table cifar10 --batch 1,4,64
python -m export.gpu_table cifar10 --batch 1 --paths compile          # torch.compile takes minutes
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.models.eager import make
from edge_sampler.models.loading import load
from edge_sampler.models.networks.layers import PositionalEmbedding
from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import BACKENDS, onnxrt
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, run_command, whole_numbers
from edge_sampler.runtime.compare import Baseline
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample

SECONDS, LEAST_RUNS = 1.0, 20  # that one row is measured for
COMPARED = 4  # images whose error is told
KERNELS = 15  # that a profile lists
WIDTH, REPEATS = 8192, 10  # of the matrices that tell the GPU's rate
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
HEAD = ("bundle", "what runs", "precision", "batch", "median ms", "p99 ms", "images/s", "RMS error", "largest", "MB")
Run = Callable[[np.ndarray], np.ndarray]  # noise [n, C, H, W] → images


class Half(torch.nn.Module):
    """A network in float16 between float32 ends, as EDM's ``use_fp16``."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network.half()

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.network(x.half(), noise.half()).float()


class Embedding(torch.nn.Module):
    """``PositionalEmbedding`` with its frequencies on the GPU: a CUDA graph cannot copy them there."""

    def __init__(self, embedding: PositionalEmbedding) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.tensor(embedding.frequencies))

    def forward(self, noise: torch.Tensor) -> torch.Tensor:
        angles = noise[:, None] * self.get_buffer("frequencies").to(noise.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


def main() -> None:
    parser = Parser(prog="python -m export.gpu_table", description=__doc__)
    parser.add_argument(
        "bundles", type=Path, nargs="+", help="of models without conditions, with --precision fp16 added"
    )
    parser.add_argument("--batch", type=whole_numbers, default=[1, 4, 64], help="such as 1,4,64 (the default)")
    parser.add_argument("--paths", default=",".join(PATHS), help=f"of {','.join(PATHS)} (default: all)")
    arguments = parser.parse_args()
    paths = arguments.paths.split(",")
    if unknown := [path for path in paths if path not in PATHS]:
        raise UserError(f"unknown path {unknown[0]!r}; known: {', '.join(PATHS)}")
    if not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU; the table is of one")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with cuda.Device() as device:
        print(f"{device.name}, {device.capability}, PyTorch {torch.__version__}\n")
    show(HEAD)
    show(["---"] * len(HEAD))
    for folder in arguments.bundles:
        bundle = Bundle.open(folder)
        if bundle.inputs.conditions:
            raise UserError(f"{folder} takes conditions; the table is of models without")
        expected = make(bundle, None)({"noise": unit_noise(range(COMPARED), bundle.inputs.sized())})
        for path in paths:
            PATHS[path](bundle, arguments.batch, expected)


def show(cells: Any) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def rows(
    bundle: Bundle,
    what: str,
    precision: str,
    batches: list[int],
    expected: np.ndarray,
    open_path: Callable[[], AbstractContextManager[Run]],
) -> None:
    """One way to run, opened once and measured at each batch; a way that fails says why in its row."""
    before = cuda.used_memory()
    try:
        with open_path() as run, torch.inference_mode():
            for batch in batches:
                noise = unit_noise(range(batch), bundle.inputs.sized())
                difference = run(noise)[:COMPARED].astype(np.float64) - expected[:batch]
                memory = cuda.used_memory() - before
                seconds = measure(partial(run, noise))
                errors = np.sqrt(np.mean(difference**2)), np.abs(difference).max()
                times = [median(seconds) * 1e3, float(np.percentile(seconds, 99)) * 1e3]
                figures = [*(f"{value:.3f}" for value in times), f"{batch / fmean(seconds):.1f}"]
                figures += [*(f"{error:.1e}" for error in errors), f"{memory / 1e6:.0f}"]
                show([bundle.folder.name, what, precision, batch, *figures])
    except Exception as error:  # of any library; the other rows are still wanted
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        show([bundle.folder.name, what, precision, "", why, *[""] * 5])
    torch.cuda.empty_cache()


def measure(run: Callable[[], object]) -> list[float]:
    """Seconds of each run, after one that is not counted."""
    run()
    seconds: list[float] = []
    while sum(seconds) < SECONDS or len(seconds) < LEAST_RUNS:
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


def network(bundle: Bundle, precision: str) -> Denoiser:
    """The bundle's model on the GPU."""
    model = load(bundle.manifest["model"]["name"], random_weights=bundle.random_weights)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, PositionalEmbedding):
                setattr(module, name, Embedding(child))
    if precision == "fp16":
        assert isinstance(model, Preconditioned)
        model.model = Half(model.model)
    return model.cuda()


def loop(bundle: Bundle, model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Unit noise on the GPU → images on the GPU.

    Answers are copied, since the next replay of a CUDA graph writes over them.
    """
    sigmas = {sigma: torch.tensor([sigma], dtype=torch.float32, device="cuda") for sigma in bundle.plan.sigmas}
    return lambda noise: sample(lambda x, sigma: model(x, sigmas[sigma]).clone(), noise, bundle.plan)


@contextmanager
def eager(bundle: Bundle, precision: str) -> Iterator[Run]:
    run = loop(bundle, network(bundle, precision))
    yield lambda noise: run(torch.from_numpy(noise).cuda()).cpu().numpy()


@contextmanager
def compiled(bundle: Bundle, precision: str) -> Iterator[Run]:
    model = torch.compile(network(bundle, precision), mode="max-autotune", dynamic=False)
    run = loop(bundle, model)
    yield lambda noise: run(torch.from_numpy(noise).cuda()).cpu().numpy()


@contextmanager
def one_cuda_graph(bundle: Bundle, precision: str) -> Iterator[Run]:
    run, captured = loop(bundle, network(bundle, precision)), dict[int, Any]()

    def capture(noise: torch.Tensor) -> Any:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(noise)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            images = run(noise)
        return graph, noise, images

    def replay(noise: np.ndarray) -> np.ndarray:
        if len(noise) not in captured:
            captured[len(noise)] = capture(torch.from_numpy(noise).cuda())
        graph, on_device, images = captured[len(noise)]
        on_device.copy_(torch.from_numpy(noise))
        graph.replay()
        return images.cpu().numpy()

    yield replay


@contextmanager
def unrolled(bundle: Bundle, precision: str, capture: bool, layout: str) -> Iterator[Run]:
    path, cuda_provider = bundle.graph(bundle.graph_name(precision)), onnxrt.CUDA
    if layout == "NHWC":
        cuda_provider = replace(cuda_provider, options={**cuda_provider.options, "prefer_nhwc": "1"})
    with onnxrt.Session(path, (), cuda_provider, precision, capture=capture) as session:
        yield lambda noise: session.run({"noise": noise})["images"]


@contextmanager
def host_loop(bundle: Bundle) -> Iterator[Run]:
    with Baseline(bundle, BACKENDS["onnxrt-cuda"].open_graph, bundle.plan) as baseline:  # type: ignore[arg-type]
        yield lambda noise: baseline.run({"noise": noise})


def show_limit(bundle: Bundle, batches: list[int], _: np.ndarray) -> None:
    """What the network's multiplications take at the rate of large matrices."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(bundle, "fp32")(torch.zeros(1, *bundle.inputs.sized(), device="cuda"), 1.0)
    for precision, dtype in DTYPES.items():
        rate = matrix_rate(dtype)
        for batch in batches:
            flops = counter.get_total_flops() * bundle.plan.nfe * batch
            what = f"limit: {flops / 1e9:.0f} GFLOP at {rate / 1e12:.0f} TFLOP/s"
            figures = [f"{flops / rate * 1e3:.3f}", "", f"{batch * rate / flops:.1f}", "", "", ""]
            show([bundle.folder.name, what, precision, batch, *figures])


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    a, b = torch.randn(2, WIDTH, WIDTH, device="cuda", dtype=dtype)
    seconds = []
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        torch.mm(a, b)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * WIDTH**3 / median(seconds)


def show_eager(bundle: Bundle, batches: list[int], expected: np.ndarray) -> None:
    for precision in DTYPES:
        rows(bundle, "PyTorch eager", precision, batches, expected, partial(eager, bundle, precision))


def show_one_cuda_graph(bundle: Bundle, batches: list[int], expected: np.ndarray) -> None:
    for precision in DTYPES:
        what = "PyTorch, loop as one CUDA graph"
        rows(bundle, what, precision, batches, expected, partial(one_cuda_graph, bundle, precision))


def show_compiled(bundle: Bundle, batches: list[int], expected: np.ndarray) -> None:
    rows(bundle, "torch.compile, max-autotune", "fp16", batches, expected, partial(compiled, bundle, "fp16"))


def show_host_loop(bundle: Bundle, batches: list[int], expected: np.ndarray) -> None:
    rows(bundle, "ONNX Runtime, host loop", "fp32", batches, expected, partial(host_loop, bundle))


def show_unrolled(bundle: Bundle, batches: list[int], expected: np.ndarray) -> None:
    for precision, capture, layout in product(DTYPES, (False, True), ("NCHW", "NHWC")):
        what = f"ONNX Runtime, unrolled, {layout}{', CUDA graph' if capture else ''}"
        rows(bundle, what, precision, batches, expected, partial(unrolled, bundle, precision, capture, layout))


def show_kernels(bundle: Bundle, batches: list[int], _: np.ndarray) -> None:
    """The kernels that take longest in one run of the fp16 graph, as ONNX Runtime runs it and as PyTorch does."""
    noise = unit_noise(range(batches[0]), bundle.inputs.sized())
    for what, path in (("ONNX Runtime", unrolled(bundle, "fp16", False, "NCHW")), ("PyTorch", eager(bundle, "fp16"))):
        with path as run, torch.inference_mode():
            run(noise)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                run(noise)
        kernels = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
        for kernel in kernels[:KERNELS]:
            print(f"    {what}: {kernel.self_device_time_total:9.0f} us, {kernel.count:5d} times, {kernel.key[:100]}")


PATHS = {
    "limit": show_limit,
    "eager": show_eager,
    "graph": show_one_cuda_graph,
    "compile": show_compiled,
    "host": show_host_loop,
    "onnxrt": show_unrolled,
    "profile": show_kernels,
}

if __name__ == "__main__":
    run_command(main)
