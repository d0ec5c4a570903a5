"""What this machine has, which backends run on it, and what would change that."""

import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.backends.onnxrt_module import library as onnx_runtime
from edge_sampler.runtime.backends.tensorrt_module import version
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import LIBRARIES
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.text import library as tokenizers
from edge_sampler.runtime.verified import missing

RELEASE = Path("/etc/nv_tegra_release")  # of Jetson Linux; no other machine has it
JETPACK = {"35": 5, "36": 6, "38": 7}  # by the release of Jetson Linux
ON_GPU, ON_CPU, NOWHERE = 0, 1, 2  # what the exit status says


@dataclass(frozen=True)
class Finding:
    """A backend, and why it cannot run here; None where it can."""

    backend: str
    reason: str | None


def machine() -> Iterator[tuple[str, str]]:
    """What is here, by name."""
    yield (
        "system",
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}",
    )
    if jetson := jetson_linux():
        yield "Jetson", jetson
    yield "GPU", _told(_gpu)
    for flavour in LIBRARIES:
        yield flavour, _told(partial(version, flavour))
    yield "ONNX Runtime", _told(_onnx_runtime)
    yield "tokenizers", _told(lambda: str(tokenizers().__version__))


def findings(bundle: Bundle | None = None) -> list[Finding]:
    """Of every backend, best first; with a bundle, whether that bundle runs so, by the files that are there.

    Raises UserError for a damaged one.
    """
    if bundle:
        for name in bundle.manifest["files"]:
            if not missing(bundle.folder, name):
                bundle.file(name)
    return [
        Finding(backend.name, backend.lacks() or (backend.unable(bundle, None) if bundle else None))
        for backend in BACKENDS.values()
    ]


def status(found: list[Finding]) -> int:
    """``ON_GPU`` where a backend runs on a GPU, ``ON_CPU`` where one runs, ``NOWHERE`` where none does."""
    running = [finding.backend for finding in found if finding.reason is None]
    return ON_GPU if any(BACKENDS[name].gpu for name in running) else ON_CPU if running else NOWHERE


def jetson_linux(release: Path = RELEASE) -> str | None:
    """The release of Jetson Linux, and the JetPack that brings it; None on another machine."""
    try:
        found = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", release.read_text(encoding="utf-8"))
    except OSError:
        return None
    if found is None:
        return "of an unknown release"
    major, minor = found.groups()
    return f"Jetson Linux {major}.{minor}" + (f", JetPack {JETPACK[major]}" if major in JETPACK else "")


def _told(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except UserError as error:
        return str(error)


def _gpu() -> str:
    with cuda.Device() as device:
        return f"{device.name}, {device.capability}, {device.memory / 2**30:.1f} GiB; driver for CUDA {cuda.version()}"


def _onnx_runtime() -> str:
    module = onnx_runtime()
    return f"{module.__version__}, with {', '.join(module.get_available_providers())}"
