"""What needs a GPU: ``python -m pytest tests/gpu [--table FILE]``. The figures are printed at the end.

Each test is skipped, with the reason, where the machine lacks what it needs. Times are measured, never asserted.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.export.build_engine import engine_for
from edge_sampler.export.extend import Additions, add
from edge_sampler.models.eager import make
from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.backends.tensorrt_module import library
from edge_sampler.runtime.bench import Timing, alternate
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import LIBRARIES, Batch, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import as_floats
from edge_sampler.runtime.sampler import feed_of
from tests.bundles import TINY
from tests.conftest import export

GPU_BACKENDS = tuple(name for name in BACKENDS if name != "onnxrt")
ROUNDS = 3
EXPORTS = {
    "digits": ("--model", "edm-digits", "--nfe", "10", "--solver", "ipndm"),
    "classes": ("--model", TINY, "--nfe", "3", "--solver", "ddim", "--output", "uint8"),
}
WEIGHTS = {"classes": TINY}  # of models that are not in the zoo


@dataclass(frozen=True)
class Row:
    """One measurement. Errors are against PyTorch's float32 images in [-1, 1], root mean square and largest."""

    what: str
    precision: str
    timing: Timing
    errors: tuple[float, ...] = ()

    def cells(self) -> tuple[str, ...]:
        times = (f"{self.timing.percentile(percent) * 1e3:.3f}" for percent in (50, 99))
        errors = (f"{error:.1e}" for error in self.errors or (np.nan, np.nan))
        speed, memory = f"{self.timing.throughput:.1f}", f"{self.timing.memory / 1e6:.0f}"
        return (self.what, self.precision, str(self.timing.batch), speed, *times, *errors, memory)


HEAD = ("what runs", "precision", "batch", "images/s", "median ms", "p99 ms", "RMS error", "largest", "memory MB")
ROWS = pytest.StashKey[list[Row]]()
Equip = Callable[..., Bundle]
Expected = Callable[[Bundle, int], np.ndarray]
Measure = Callable[[str, str, Callable[[], np.ndarray], np.ndarray, int], np.ndarray]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--table", type=Path, help="tests/gpu: write the table of measurements to this file")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows, gpu = config.stash.get(ROWS, []), "no GPU"
    if not rows:
        return
    with suppress(UserError), cuda.Device() as device:
        gpu = f"{device.name}, {device.capability}"
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in rows)]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    terminalreporter.section(f"measured on {gpu}")
    terminalreporter.write_line(text)
    if path := config.getoption("--table", None):
        path.write_text(f"{gpu}\n\n{text}\n")


@pytest.fixture(scope="session", autouse=True)
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache folder of this run, empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("EDGE_SAMPLER_CACHE", str(folder))
        yield folder


def planned(name: str, precision: str, batch: str) -> Engine | None:
    """The engine that a backend needs here, if it needs one. Raises UserError saying what is missing."""
    if name not in LIBRARIES:
        return None
    library(name)
    with cuda.Device() as device:
        return engine_for(name, device.capability, precision, Batch.parse(batch))


def missing(name: str, precision: str, batch: str) -> str | None:
    """Why this machine cannot run a backend: it is asked about a bundle, made up, that has all it could want."""
    try:
        engine = planned(name, precision, batch)
    except UserError as error:
        return str(error)
    files = dict.fromkeys(("sampler.onnx", "sampler-fp16.onnx", "sampler-bf16.onnx"))
    manifest = {"files": files, "engines": [engine.record()] if engine else []}
    return BACKENDS[name].lacks() or BACKENDS[name].unable(Bundle(Path(), manifest), precision)


@pytest.fixture(scope="session")
def equip(tmp_path_factory: pytest.TempPathFactory) -> Equip:
    """(backend, precision, batch, model) → a bundle with what that backend needs; skips where it cannot run."""

    @cache
    def exported(model: str) -> Path:
        out = tmp_path_factory.mktemp("exported") / model
        export(*EXPORTS[model], "--check", "0", "--out", str(out))
        return out

    @cache
    def copied(model: str, batch: str) -> Path:  # one for each batch: a backend takes the first engine that fits
        return Path(shutil.copytree(exported(model), tmp_path_factory.mktemp("copied") / model))

    @cache
    def equipped(name: str, precision: str, batch: str, model: str) -> Path:
        folder, engine = copied(model, batch), planned(name, precision, batch)
        if engine or precision != "fp32":
            add(Bundle.open(folder), Additions(precision, None, engine))
        return folder

    def equip(name: str, precision: str = "fp32", batch: str = "1", model: str = "digits") -> Bundle:
        if reason := missing(name, precision, batch):
            pytest.skip(f"{name}: {reason}")
        return Bundle.open(equipped(name, precision, batch, model))

    return equip


@pytest.fixture(scope="session")
def pytorch() -> Expected:
    """(bundle, n) → what PyTorch makes of the seeds 0 … n-1, in float32 on the CPU; classes in turn."""

    @cache
    def images(folder: Path, count: int) -> np.ndarray:
        bundle = Bundle.open(folder)
        return make(bundle, WEIGHTS.get(folder.name))(feed_of(bundle, range(count), bundle.examples(count)))

    return lambda bundle, count: images(bundle.folder, count)


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    """(what, precision, run, expected, memory used before): adds a row, and returns the images that ``run`` makes."""

    def measure(
        what: str, precision: str, run: Callable[[], np.ndarray], expected: np.ndarray, before: int
    ) -> np.ndarray:
        images = run()
        memory = max(0, cuda.used_memory() - before)
        latencies = tuple(seconds for turn in alternate({what: run}, ROUNDS)[what] for seconds in turn)
        difference = as_floats(images).astype(np.float64) - expected
        errors = float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).max())
        row = Row(what, precision, Timing(what, len(expected), latencies, memory=memory), errors)
        request.config.stash.setdefault(ROWS, []).append(row)
        return images

    return measure
