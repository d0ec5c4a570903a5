"""ONNX Runtime as it is asked: by a library that only remembers, and by graphs of one node."""

import importlib
import importlib.util
import platform
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import cuda as driver
from edge_sampler.runtime.backends import onnxrt
from edge_sampler.runtime.backends.onnxrt import BACKENDS, CPU, CUDA, RTX, Provider, Session, saturates
from edge_sampler.runtime.errors import UserError

FOLDER = "session.model_external_initializers_file_folder_path"


@pytest.fixture(autouse=True)
def _forgets() -> Iterator[None]:
    yield
    saturates.cache_clear()
    onnxrt._register_rtx.cache_clear()


class Options:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.entries, self.devices = dict[str, str](), list[Any]()
        self.graph_optimization_level = "all"

    def add_session_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value

    add_run_config_entry = add_session_config_entry

    def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
        self.devices = [*devices, options]


def value(name: str, kind: str = "tensor(float)", shape: tuple[Any, ...] = ("batch", 2)) -> Any:
    return SimpleNamespace(name=name, type=kind, shape=list(shape))


class Library:
    """An onnxruntime whose sessions run on ``provider``."""

    __version__, SessionOptions, RunOptions = "1.0", Options, Options
    GraphOptimizationLevel = SimpleNamespace(ORT_DISABLE_ALL="none")

    def __init__(self, provider: Provider = CPU) -> None:
        self.provider, self.made, self.preloaded, self.registered = provider, list[Any](), 0, list[Any]()

    def InferenceSession(self, source: Any, options: Options, providers: Any) -> Any:  # noqa: N802 (as it is called)
        self.made.append((source, options, providers))
        return SimpleNamespace(
            get_providers=lambda: [self.provider.name, "CPUExecutionProvider"],
            get_inputs=lambda: [
                value("x"),
                value("ids", "tensor(int64)", ("batch",)),
                value("odd", "tensor(bfloat16)"),
            ],
            get_outputs=lambda: [value("y"), value("z")],
            run=lambda names, feed: list(names),
        )

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def get_available_providers(self) -> list[str]:
        return [self.provider.name]

    def register_execution_provider_library(self, name: str, path: str) -> None:
        self.registered.append((name, path))

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name) for name in (CPU.name, RTX.name, RTX.name)]


def library(monkeypatch: pytest.MonkeyPatch, provider: Provider = CPU, vnni: bool = True) -> Library:
    made = Library(provider)
    monkeypatch.setattr(onnxrt, "library", lambda: made)
    monkeypatch.setattr(onnxrt, "saturates", lambda: not vnni)
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name: SimpleNamespace(get_library_path=lambda: name),
    )
    return made


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "a.onnx").write_bytes(b"graph")
    return tmp_path / "a.onnx"


def test_a_session_of_the_cpu_is_asked_for_as_it_is_meant(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = library(monkeypatch)
    session = Session(graph)
    ((source, options, providers),) = ours.made
    assert source == str(graph)
    assert providers == [("CPUExecutionProvider", {})]
    assert options.entries == {"session.set_denormal_as_zero": "1", FOLDER: str(graph.parent.resolve())}
    assert (options.log_severity_level, options.graph_optimization_level) == (3, "all")
    assert session.takes == {
        "x": ("float32", ["batch", 2]),
        "ids": ("int64", ["batch"]),
        "odd": ("tensor(bfloat16)", ["batch", 2]),
    }
    assert (session.outputs, session.precision, session.largest_batch) == (["y", "z"], "fp32", None)
    assert session.description == "ONNX Runtime 1.0, CPUExecutionProvider, a.onnx"
    assert session.spans({}) is None
    assert ours.preloaded == 0


def test_inner_values_are_declared_behind_the_graph(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = library(monkeypatch)
    Session(graph, ["inner"])
    assert ours.made[0][0].startswith(b"graph")
    assert ours.made[0][0].endswith(b"inner")


def test_what_is_asked_for_beside(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of eight bits that could overflow; weights in a file of their own; the graph as it was written."""
    ours = library(monkeypatch, vnni=False)
    (graph.parent / "a.onnx.data").touch()
    Session(graph, optimise=False)
    entries = ours.made[0][1].entries
    assert entries["session.disable_quant_qdq"] == entries["session.disable_prepacking"] == "1"
    assert ours.made[0][1].graph_optimization_level == "none"
    gpu = library(monkeypatch, CUDA, vnni=False)
    Session(graph, provider=CUDA)
    assert set(gpu.made[0][1].entries) == {"session.set_denormal_as_zero", FOLDER}
    assert gpu.preloaded == 1


@pytest.mark.parametrize(
    ("precision", "capture", "told"),
    [
        ("fp32", False, {"use_tf32": "0"}),
        ("fp16", False, {"use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC"}),
        ("fp32", True, {"use_tf32": "0", "enable_cuda_graph": "1"}),
    ],
)
def test_a_gpu_is_told_of_its_precision(
    precision: str, capture: bool, told: dict[str, str], graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = library(monkeypatch, CUDA)
    session = Session(graph, provider=CUDA, precision=precision, capture=capture)
    assert ours.made[0][2] == [("CUDAExecutionProvider", told)]
    assert ("CUDA graph" in session.description) == capture
    assert session.precision == precision
    assert "use_tf32" not in CPU.options  # nor did the call change the providers
    ours = library(monkeypatch, CPU)
    Session(graph, precision=precision)
    assert ours.made[0][2] == [("CPUExecutionProvider", {})]
    assert CUDA.options == {"use_tf32": "0"}


def test_the_plugin_is_told_of_its_device_by_the_options(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = library(monkeypatch, RTX)
    for _ in range(2):
        Session(graph, provider=RTX)
    (_, options, providers), _ = ours.made
    assert providers is None
    assert [getattr(one, "ep_name", one) for one in options.devices] == [RTX.name, {}]
    assert ours.registered == [(RTX.name, onnxrt.RTX_PLUGIN)]
    assert ours.preloaded == 0


def test_what_fails_is_one_line(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no\nsecond line")

    ours = library(monkeypatch)
    session = Session(graph)
    feed: dict[str, np.ndarray] = {
        "x": np.zeros((1, 2), np.float32),
        "ids": np.zeros(1, np.int64),
        "odd": np.zeros((1, 2)),
    }
    session.takes["odd"] = "float64", ["batch", 2]
    assert session.run(feed) == {"y": "y", "z": "z"}
    session._session.run = fails
    with pytest.raises(UserError, match=r"^ONNX Runtime could not run ONNX Runtime 1\.0, CPU.*, a\.onnx: no$"):
        session.run(feed)
    with pytest.raises(UserError, match="takes ids, odd, x, and was given nothing"):
        session.run({})
    monkeypatch.setattr(ours, "InferenceSession", fails)
    with pytest.raises(UserError, match=rf"^ONNX Runtime cannot load {graph}: no$"):
        Session(graph)
    library(monkeypatch, CPU)
    with pytest.raises(
        UserError, match=r"would run a\.onnx on CPUExecutionProvider, not on CUDAExecution.*: check the"
    ):
        Session(graph, provider=CUDA)
    library(monkeypatch, RTX)
    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UserError, match=f"^{onnxrt.RTX_PLUGIN} cannot be loaded: no$"):
        Session(graph, provider=RTX)


def test_a_session_is_freed_at_the_end(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(monkeypatch)
    with Session(graph) as session:
        assert session._session
    assert not hasattr(session, "_session")


@pytest.mark.parametrize(
    ("machine", "told", "expected"),
    [
        ("x86_64", "flags: avx2", True),
        ("AMD64", None, True),
        ("x86_64", "flags: avx512_vnni", False),
        ("aarch64", "flags:", False),
    ],
)
def test_eight_bits_may_overflow_where_a_processor_lacks_vnni(
    machine: str, told: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, encoding: str) -> str:
        if told is None:
            raise FileNotFoundError
        return told

    saturates.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", read)
    assert saturates() is expected


def test_what_a_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver, a provider, the plugin; for the CPU nothing."""
    cpu, cuda, rtx = (
        {one.name: one for one in BACKENDS}[name] for name in ("onnxrt", "onnxrt-cuda", "onnxrt-tensorrt-rtx")
    )
    assert [one.rank for one in (rtx, cuda, cpu)] == sorted(one.rank for one in BACKENDS)
    assert [one.gpu for one in (rtx, cuda, cpu)] == [True, True, False]

    def none() -> None:
        raise UserError("no driver")

    library(monkeypatch, CUDA)
    monkeypatch.setattr(driver, "driver", none)
    assert (cpu.lacks(), cuda.lacks()) == (None, "no driver")
    found = [True]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[0] or None)
    assert rtx.lacks() == "no driver"
    monkeypatch.setattr(driver, "driver", lambda: None)
    assert (cuda.lacks(), rtx.lacks()) == (None, None)
    found[0] = False
    assert rtx.lacks() == "pip install onnxruntime-ep-nv-tensorrt-rtx"
    library(monkeypatch, CPU)
    assert cuda.lacks() == CUDA.install
    monkeypatch.setattr(onnxrt, "library", none)
    assert cpu.lacks() == "no driver"


def test_what_a_bundle_lacks(tmp_path: Path) -> None:
    bundle: Any = SimpleNamespace(
        folder=tmp_path,
        graph_name=lambda precision: f"sampler-{precision}.onnx",
        manifest={"files": {"sampler-bf16.onnx": {}}},
    )
    (tmp_path / "sampler-bf16.onnx").touch()
    cpu, cuda = ({one.name: one for one in BACKENDS}[name] for name in ("onnxrt", "onnxrt-cuda"))
    assert cpu.unable(bundle, "bf16") == "its CPU kernels have no bfloat16"
    assert cuda.unable(bundle, "bf16") is None
    told = "the bundle holds no sampler-fp16.onnx: python -m export engine BUNDLE --precision fp16"
    assert cpu.unable(bundle, "fp16") == cuda.unable(bundle, "fp16") == told
    bundle.manifest["files"]["sampler-fp16.onnx"] = {}
    assert "sampler-fp16.onnx is missing, though the manifest lists it" in str(cpu.unable(bundle, "fp16"))
    (tmp_path / "sampler-fp16.onnx").touch()
    assert cpu.unable(bundle, "fp16") is None


def test_a_graph_is_captured_where_it_can_be(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, fails = list[Any](), list[bool]()

    class Opened:
        takes = "taken"

        def __init__(self, *arguments: Any, capture: bool = False, content: bytes | None) -> None:
            asked.append((*arguments, content, capture))
            if capture and fails:
                raise UserError("it does something that cannot be captured")

    checked = list[Any]()
    monkeypatch.setattr(onnxrt, "Session", Opened)
    monkeypatch.setattr(onnxrt, "check_declared", lambda *told: checked.append(told[1:]))
    bundle: Any = SimpleNamespace(
        graph=lambda name: graph.parent / name, graph_name=lambda precision: "a.onnx", folder=graph.parent,
        read=lambda name: b"verified", manifest={"files": {"denoiser.onnx.data": {}}},
    )  # fmt: skip
    cpu, cuda = ({one.name: one for one in BACKENDS}[name] for name in ("onnxrt", "onnxrt-cuda"))
    cuda.open(bundle, "fp16", ())
    cuda.open(bundle, None, ("inner",))
    cpu.open(bundle, None, ())
    assert asked == [
        (graph, (), CUDA, "fp16", b"verified", True),
        (graph, ("inner",), CUDA, "fp32", b"verified", False),
        (graph, (), CPU, "fp32", b"verified", False),
    ]
    fails.append(True)
    cuda.open(bundle, "fp16", ())
    assert [told[-1] for told in asked[3:]] == [True, False]
    assert checked == [("taken", "a.onnx")] * 4
    assert cpu.open_graph
    cpu.open_graph(bundle, "denoiser.onnx")
    assert asked[-1] == (graph.parent / "denoiser.onnx", (), CPU, None, False)  # with weights beside
