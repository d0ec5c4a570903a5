"""Libraries that are missing, too old or broken, the folders that we keep, and counts as Prometheus reads them."""

import importlib
import os
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import install
from edge_sampler.runtime.backends import onnxrt_module, tensorrt_module
from edge_sampler.runtime.backends.onnxrt_module import threads, without_links
from edge_sampler.runtime.backends.tensorrt_module import LOGGED_LINES, logger
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command
from edge_sampler.runtime.serve.metrics import OUTCOMES, SECONDS, SIZES, Histogram, Metrics, page


@pytest.mark.parametrize(("told", "expected"), [(None, 0), ("0", 0), ("7", 7), ("9999", 8)])
def test_threads_are_as_many_as_the_environment_says_up_to_the_cores(
    told: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("EDGE_SAMPLER_THREADS", raising=False)
    if told is not None:
        monkeypatch.setenv("EDGE_SAMPLER_THREADS", told)
    assert threads() == expected


@pytest.mark.parametrize("told", ["", "-1", "1.5", "all", "10000"])
def test_threads_are_a_number(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_THREADS", told)
    with pytest.raises(UserError, match=f"EDGE_SAMPLER_THREADS is '{told}'; it must be a number of threads, or 0"):
        threads()


@pytest.mark.parametrize(("version", "fits"), [("1.17.3", False), ("1.18.0", True), ("1.9", False), ("2.0", True)])
def test_onnx_runtime_is_as_late_as_our_graphs_need(version: str, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(__version__=version)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    if fits:
        assert onnxrt_module.library() is module
    else:
        with pytest.raises(UserError, match=rf"onnxruntime 1\.18 or later is needed, and {version} is installed"):
            onnxrt_module.library()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("none"), "^install onnxruntime$"),
        (ImportError("first\nsecond"), r"^onnxruntime cannot be loaded \(first\)"),
        (AttributeError(), r"^onnxruntime cannot be loaded \(AttributeError\)"),
    ],
)
def test_an_onnx_runtime_that_cannot_be_loaded(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    for numpy, advice in (("1.26", False), ("2.1", True)):
        monkeypatch.setattr(np, "__version__", numpy)
        with pytest.raises(UserError, match=told) as refused:
            onnxrt_module.library()
        assert ("pip install 'numpy<2'" in str(refused.value)) == (advice and "loaded" in told)


@pytest.mark.parametrize("across", [False, True])
def test_weights_behind_links_are_beside_their_graph(
    across: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linked anew, or copied where the cache is on another disk; nothing stays."""
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    if across:

        def fails(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(os, "link", fails)
    blobs, folder = tmp_path / "blobs", tmp_path / "folder"
    blobs.mkdir()
    folder.mkdir()
    for name in ("a.onnx", "a.onnx.data"):
        (blobs / name[::-1]).write_text(name)
        (folder / name).symlink_to(blobs / name[::-1])
    with without_links(folder / "a.onnx") as found:
        assert found.parent != folder
        assert {path.name: path.read_text() for path in found.parent.glob("a*")} == {
            "a.onnx": "a.onnx", "a.onnx.data": "a.onnx.data"
        }  # fmt: skip
        assert not any(path.is_symlink() for path in found.parent.iterdir())
        assert ((found.parent / "a.onnx.data").stat().st_ino == (blobs / "atad.xnno.a").stat().st_ino) != across
    with without_links(folder / "a.onnx") as again:
        assert again.read_text() == "a.onnx"
    assert not list((tmp_path / "cache" / "linked").iterdir())
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", os.devnull)
    told = "cannot write to .*linked: .*; let EDGE_SAMPLER_CACHE name another folder"
    with pytest.raises(UserError, match=told), without_links(folder / "a.onnx"):
        pytest.fail("it began")


def test_a_graph_whose_weights_are_no_links_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "blob").touch()
    (tmp_path / "a.onnx").symlink_to(tmp_path / "blob")
    with without_links(tmp_path / "a.onnx") as found:  # alone: ONNX Runtime follows it
        assert found == tmp_path / "a.onnx"
    for name in ("b.onnx", "b.onnx.data"):
        (tmp_path / name).touch()
    with without_links(tmp_path / "b.onnx") as found:
        assert found == tmp_path / "b.onnx"
    assert not (tmp_path / "cache").exists()


def test_a_tensorrt_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python3.10" / "dist-packages" / "tensorrt").mkdir(parents=True)
    for flavour, told in (("tensorrt", "hides it"), ("tensorrt-rtx", "not installed: pip install tensorrt-rtx")):
        module = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[flavour]
        monkeypatch.setitem(sys.modules, module, ModuleType(module))  # stubs alone
        with pytest.raises(UserError, match=told):
            tensorrt_module.library(flavour, tmp_path)
    for error in (ImportError("libnvinfer"), OSError("libnvinfer"), RuntimeError("libnvinfer")):

        def fails(name: str, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(importlib, "import_module", fails)
            with pytest.raises(UserError, match=r"^tensorrt cannot be loaded \(libnvinfer\): install it again$"):
                tensorrt_module.library("tensorrt")


def test_the_last_error_is_told_and_old_lines_go(monkeypatch: pytest.MonkeyPatch) -> None:
    severity = SimpleNamespace(VERBOSE="VERBOSE")
    library: Any = SimpleNamespace(ILogger=type("ILogger", (), {"Severity": severity}))
    monkeypatch.setattr(tensorrt_module, "library", lambda flavour: library)
    logger.cache_clear()
    try:
        said = logger("tensorrt")
        assert said is logger("tensorrt")
        assert said.last_error() == "it gave no reason"
        for kind, word in (("ERROR", "old"), ("INTERNAL_ERROR", "new"), ("WARNING", "odd"), ("VERBOSE", "much")):
            said.log(SimpleNamespace(name=kind) if kind != "VERBOSE" else kind, word)
        assert list(said.lines) == ["ERROR: old", "INTERNAL_ERROR: new", "WARNING: odd"]
        assert said.last_error() == "INTERNAL_ERROR: new"
        for _ in range(LOGGED_LINES):
            said.log("INFO", "again")
        assert set(said.lines) == {"INFO: again"}
    finally:
        logger.cache_clear()


def test_what_to_install_is_said_for_this_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (install.CHECKOUT / "runtime" / "install.py").is_file()
    command = partial(install_command, checkout=tmp_path)
    assert command("cpu", "text") == "pip install 'edge-sampler[cpu,text]'"
    (tmp_path / "pyproject.toml").touch()
    assert command("cpu") == f"pip install -e '{tmp_path}[cpu]'"
    monkeypatch.chdir(tmp_path)
    assert command("cpu") == "pip install -e '.[cpu]'"


def test_a_count_tells_a_value_within_a_factor_of_three() -> None:
    ratios = [more / less for bounds in (SECONDS, SIZES) for less, more in pairwise(bounds)]
    assert 2 <= min(ratios) <= max(ratios) <= 3
    assert (SECONDS[0], SIZES[0]) == (0.005, 1)


def test_counts_are_as_prometheus_reads_them() -> None:
    histogram = Histogram((1, 2.5))
    for value in (0.5, 1, 1.5, 2.5, 9):
        histogram.add(value)
    assert list(histogram.lines("n", 'a="b"')) == [
        'n_bucket{a="b",le="1"} 2', 'n_bucket{a="b",le="2.5"} 4', 'n_bucket{a="b",le="+Inf"} 5', 'n_sum{a="b"} 14.5',
        'n_count{a="b"} 5',
    ]  # fmt: skip
    one = Metrics(waiting=3)
    one.requests["ok"] += 2
    one.batches.add(4)
    one.seconds.add(0.2)
    lines = page({"m": one, "n": Metrics()}).splitlines()
    assert [line for line in lines if line.startswith("# TYPE")] == [
        "# TYPE edge_sampler_requests_total counter", "# TYPE edge_sampler_queue_images gauge",
        "# TYPE edge_sampler_batch_images histogram", "# TYPE edge_sampler_request_seconds histogram",
    ]  # fmt: skip
    assert sum(line.startswith("# HELP edge_sampler_") for line in lines) == 4
    for told in (
        'requests_total{model="m",outcome="ok"} 2', 'queue_images{model="m"} 3', 'queue_images{model="n"} 0',
        'batch_images_bucket{model="m",le="2"} 0', 'batch_images_bucket{model="m",le="4"} 1',
        'request_seconds_bucket{model="m",le="0.1"} 0', 'request_seconds_bucket{model="m",le="0.25"} 1',
        'request_seconds_sum{model="m"} 0.2',
    ):  # fmt: skip
        assert f"edge_sampler_{told}" in lines
    assert sum('requests_total{model="m"' in line for line in lines) == len(OUTCOMES)
