"""What several rooms' tests share.

On a device there is no PyTorch: then bundles made elsewhere by ``python -m tests.bundles FOLDER`` are taken, where the
environment variable EDGE_SAMPLER_BUNDLES says that they are, and tests that need PyTorch are skipped.
"""

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_sampler import models
from edge_sampler.runtime.fit_report import FitReport
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan
from tests.bundles import BUNDLES
from tests.warm import remember

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from edge_sampler.calibration.evaluate.network import Network
    from edge_sampler.models.denoiser import Denoiser

HAS_PYTORCH = find_spec("torch") is not None
NEED_PYTORCH = ("test_serve_conditions.py", "test_text.py", "test_trt_conditions.py")
collect_ignore = [] if HAS_PYTORCH else [f"runtime/{name}" for name in NEED_PYTORCH]
pytest_plugins = ("tests.fakes.cuda", "tests.fakes.cpp")
os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is there: a file alone finds what all find by several processes
if find_spec("hypothesis"):  # which some devices do not have; its own bounds are on time
    from hypothesis import HealthCheck, settings

    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")
DATA = Path(__file__).parent / "data"
GOLDEN = tuple(sorted(path.stem for path in DATA.glob("*cond.npz")))
DRAWN_ONCE = (
    "ddim-fashion", "edm-digits", "edm-fashion", "edm-fashion-cond", "flow-digits", "flow-emoji",
    "official-format-tiny", *GOLDEN,
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Neighbours go to one worker, which makes their module's fixtures once; one that is done takes over another's."""
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log)


def pytest_collection_finish() -> None:
    """What is imported stays: to look through it for garbage, again and again, takes a tenth of all the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in ("test_tutorials.py", "test_pages.py"))


@dataclass(frozen=True)
class Golden:
    """One network of the original implementation, rebuilt as ours, and what the original computed."""

    name: str
    model: "Denoiser"
    arrays: dict[str, np.ndarray]
    conditions: dict[str, "torch.Tensor"]


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    torch = pytest.importorskip("torch")
    with np.load(DATA / f"{request.param}.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    architecture, weights = tmp_path / f"{request.param}.json", tmp_path / "weights.pt"
    architecture.write_text(str(arrays["kwargs"]))
    state = {name.removeprefix("state/"): torch.tensor(a) for name, a in arrays.items() if name.startswith("state/")}
    torch.save(state, weights)
    classes = {"class_labels": torch.tensor(arrays["class_labels"].argmax(1))} if "class_labels" in arrays else {}
    return Golden(request.param, models.load(str(architecture), weights), arrays, classes)


@pytest.fixture(scope="session")
def digits() -> "Denoiser":
    pytest.importorskip("torch")
    return models.load("edm-digits")


@pytest.fixture(scope="session")
def digits_graph(digits: "Denoiser", drawn_once: Callable[["Denoiser"], "ir.Model"]) -> "ir.Model":
    return drawn_once(digits)


@pytest.fixture(scope="session")
def noise(digits: "Denoiser") -> "torch.Tensor":
    """Unit noise of seeds 0 to 3, float64."""
    import torch

    return torch.from_numpy(unit_noise(range(4), digits.spec.shape)).double()


@pytest.fixture
def network(digits: "Denoiser") -> "Network":
    from edge_sampler.calibration.evaluate.network import Network

    return Network(digits)


@pytest.fixture(scope="session")
def checkpoints() -> dict[str, Any]:
    """The published facts of the nine official files."""
    facts: dict[str, Any] = json.loads((DATA / "official_checkpoints.json").read_text())
    return facts


@pytest.fixture(scope="session", autouse=HAS_PYTORCH)
def drawn_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[["Denoiser"], "ir.Model"]]:
    """Bundles of networks that ship, or are the original's, take PyTorch's export of them from the first time.

    It takes seconds, and whichever worker made it writes it down for all. Where a test asks for the export itself, it
    gets a new one.
    """
    import onnx_ir as ir

    from edge_sampler.export import assemble, network_graph

    def remembered(part: str) -> Callable[["Denoiser"], "ir.Model"]:
        draw = getattr(network_graph, f"export_{part}")

        def drawn(model: "Denoiser") -> "ir.Model":
            if model.spec.name not in DRAWN_ONCE or getattr(model, part, model) is None:
                return draw(model)
            passes = "" if getattr(model, "one_batch", True) else "-passes"  # of the same answers
            name = f"{model.spec.fingerprint}-{part}{passes}.onnx"
            return ir.load(once(name, lambda path: ir.save(draw(model), path), tmp_path_factory))

        return drawn

    with pytest.MonkeyPatch.context() as patch:
        for part in ("denoiser", "encoder", "decoder"):
            patch.setattr(assemble, f"export_{part}", remembered(part))
        yield remembered("denoiser")


@pytest.fixture(scope="session", autouse=HAS_PYTORCH)
def exporter_remembers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        remember(patch.setattr)
        yield


def runs_fp8() -> bool:
    """Whether this ONNX Runtime moves fp8 values on a CPU."""
    import onnxruntime

    return tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 24)


@pytest.fixture(scope="session")
def quantised(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of digits with int8, int8+fp16 and, where it runs, fp8. Do not change it."""
    from edge_sampler.export.engine_command import main
    from edge_sampler.export.precisions import QUANTISED

    def make(folder: Path) -> None:
        shutil.copytree(made, folder)
        for precision in QUANTISED if runs_fp8() else [one for one in QUANTISED if one != "fp8"]:
            run_main(main, str(folder), "--precision", precision)

    return once("quantised", make, tmp_path_factory)


def run_main(main: Callable[[], object], *arguments: str) -> object:
    """What a command line's ``main`` returns for these arguments, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        return main()


def export(*arguments: str) -> None:
    pytest.importorskip("torch")
    from edge_sampler.export.command import main

    run_main(main, *arguments)


def once(name: str, make: Callable[[Path], object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file or folder that ``make`` makes, once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    lock: AbstractContextManager[Any] = nullcontext()
    if "PYTEST_XDIST_WORKER" in os.environ:
        from filelock import FileLock  # which devices may not have

        folder = folder.parent
        lock = FileLock(folder / f"{name}.lock")
    out, new = folder / "once" / name, folder / "making" / name
    with lock:
        if not out.exists():
            for path in (out, new):
                path.parent.mkdir(exist_ok=True)
            make(new)
            new.rename(out)  # whole, or not there
    return out


def bundle(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once, for all workers."""
    if elsewhere := os.environ.get("EDGE_SAMPLER_BUNDLES"):
        return Path(elsewhere) / name
    pytest.importorskip("torch")
    return once(name, lambda out: export(*BUNDLES[name], "--out", str(out)), tmp_path_factory)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of trained weights, without classes. Do not change it: take ``copy``."""
    return bundle("digits", tmp_path_factory)


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with classes and uint8 images. Do not change it."""
    return bundle("tiny", tmp_path_factory)


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


Parity = Callable[[str, str, float, float], None]


@pytest.fixture
def parity(record_property: Callable[[str, object], None]) -> Parity:
    """Holds a difference from another library's own code under a bound: of what, compared in what, how much, the bound.

    ``python -m tests.parity`` makes a page of them.
    """

    def hold(of: str, what: str, difference: float, bound: float) -> None:
        record_property("parity", [of, what, float(difference), bound])  # as plain numbers cross processes
        assert difference < bound, f"{of}, {what}: {difference:.1e}"

    return hold


def relative(found: Any, expected: Any) -> float:
    """Largest difference over the largest magnitude."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def report_of(plan: Plan) -> FitReport:
    """Of a plan that was fitted."""
    assert plan.report
    return plan.report
