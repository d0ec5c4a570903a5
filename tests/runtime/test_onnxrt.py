"""ONNX Runtime's NVIDIA providers: what they cannot do is an error, never a quiet run on the CPU."""

import ctypes
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edge_sampler import runtime
from edge_sampler.runtime import sampler
from edge_sampler.runtime.backends import BACKENDS, onnxrt
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def test_a_provider_that_falls_back_is_refused(made: Path) -> None:
    """What onnxruntime without CUDA does when it is asked for CUDA, as onnxruntime-gpu does without its libraries."""
    with (
        pytest.warns(UserWarning, match="not in available provider"),
        pytest.raises(
            UserError, match=r"would run sampler\.onnx on CPUExecutionProvider, not on CUDAExecutionProvider"
        ),
    ):
        onnxrt.Session(Bundle.open(made).graph("sampler.onnx"), provider=onnxrt.CUDA)


@pytest.mark.parametrize(
    ("precision", "tf32"), [("fp32", "0"), ("fp16", "1"), ("bf16", "1"), ("int8", "0"), ("int8+fp16", "1")]
)
def test_tensor_cores_are_for_16_bits_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, precision: str, tf32: str
) -> None:
    """``use_tf32`` rounds float32's products, and without it 16 bits run at a third of their speed (docs/gpu.md)."""
    asked: list[Any] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **named: asked.extend(named["providers"]))
    with pytest.raises(AttributeError):  # the session that was asked for is none
        onnxrt.Session(Bundle.open(made).graph("sampler.onnx"), provider=onnxrt.CUDA, precision=precision)
    assert [(name, options["use_tf32"]) for name, options in asked] == [("CUDAExecutionProvider", tf32)]


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("onnxrt-cuda", "pip install onnxruntime-gpu"),
        ("onnxrt-tensorrt-rtx", "pip install onnxruntime-ep-nv-tensorrt-rtx"),
    ],
)
def test_a_missing_provider_says_what_to_install(made: Path, backend: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{backend} cannot run this bundle here: {message}"):
        runtime.load(made, backend)


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, fake_cuda: ctypes.CDLL) -> Iterator[dict[str, Any]]:
    """The TensorRT-RTX plugin, installed, on a machine with a driver; ``devices`` is what it offers."""
    state: dict[str, Any] = {"devices": []}
    module = SimpleNamespace(get_library_path=lambda: "plugin.so", __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, onnxrt.RTX_PLUGIN, module)
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda *named: state.update(registered=named)
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: state["devices"])
    onnxrt._register_rtx.cache_clear()
    yield state
    onnxrt._register_rtx.cache_clear()


def test_a_plugin_without_a_gpu_is_refused(made: Path, plugin: dict[str, Any]) -> None:
    plugin["devices"] = [SimpleNamespace(ep_name="CPUExecutionProvider")]
    with pytest.raises(UserError, match="finds no GPU that it supports"):
        runtime.load(made, "onnxrt-tensorrt-rtx")
    assert plugin["registered"] == (onnxrt.RTX.name, "plugin.so")


def test_the_plugins_device_is_handed_to_the_session(
    made: Path, plugin: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimpleNamespace(ep_name=onnxrt.RTX.name)
    plugin["devices"] = [SimpleNamespace(ep_name="CPUExecutionProvider"), gpu]
    asked: list[Any] = []

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            asked.extend(devices)

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    with pytest.raises(UserError, match=r"would run sampler\.onnx on CPUExecutionProvider, not on NvTensor"):
        runtime.load(made, "onnxrt-tensorrt-rtx")  # the session got no real device, and so took the CPU
    assert asked == [gpu]


@pytest.mark.parametrize(
    ("precision", "message"), [("fp16", "holds no sampler-fp16.onnx"), ("bf16", "no sampler-bf16")]
)
def test_a_precision_that_is_not_there_says_how_to_make_it(made: Path, precision: str, message: str) -> None:
    with pytest.raises(UserError, match=f"{message}.*python -m export engine BUNDLE --precision {precision}"):
        runtime.load(made, "onnxrt", precision)


def test_unless_told_a_run_has_as_many_samples_as_memory_holds(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `sample`, `compare` and its loop: what a network computes with would fill the memory else."""
    assert [sampler.usual_batch(shape) for shape in ((3, 32, 32), (3, 256, 256), (1,))] == [64, 1, 64]
    for module in ("sampler", "compare"):
        monkeypatch.setattr(f"edge_sampler.runtime.{module}.usual_batch", lambda shape: {(1, 8, 8): 2}[tuple(shape)])
    bundle, sizes, run = Bundle.open(made), list[int](), onnxrt.Session.run

    def spied(session: onnxrt.Session, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(feed["noise"] if "noise" in feed else feed["x"]))
        return run(session, feed)

    monkeypatch.setattr(onnxrt.Session, "run", spied)
    with sampler.Sampler(bundle, "onnxrt") as loaded:
        images = loaded.sample(range(5))
        assert sizes == [2, 2, 1]
        np.testing.assert_allclose(loaded.sample(range(5), batch=5), images, atol=1e-4)
        assert sizes[3:] == [5]
    sizes.clear()
    found = compare(bundle, seeds=[0, 1, 2], backends=["onnxrt"])
    assert sizes == [2, 1] + [2] * bundle.plan.nfe + [1] * bundle.plan.nfe
    assert len(found) == bundle.plan.nfe + 1
    assert within(found, None)


def test_the_callers_thread_keeps_its_denormals(made: Path) -> None:
    """ONNX Runtime flushes them in the thread that makes a process's first session, for good."""
    program = (
        "import numpy as np, sys; from edge_sampler.runtime import load\n"
        "with load(sys.argv[1], 'onnxrt') as sampler: sampler.sample([0])\n"
        "assert np.float32(1e-40) * np.float32(1) > 0"
    )
    subprocess.run([sys.executable, "-c", program, str(made)], check=True, cwd=ROOT)


@pytest.mark.parametrize("outputs", [(), ("denoised_0",)])
def test_the_graph_that_was_verified_is_the_one_that_runs(
    outputs: tuple[str, ...], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def exchanged(path: Path) -> Iterator[Path]:
        path.write_bytes(b"another graph")
        yield path

    monkeypatch.setattr(onnxrt, "without_links", exchanged)
    bundle = Bundle.open(copy)
    with BACKENDS["onnxrt"].open(bundle, None, outputs) as session:
        made = session.run({"noise": np.zeros((1, *bundle.inputs.sized()), np.float32)})
    assert {"images", *outputs} == set(made)
    with pytest.raises(UserError, match="is not the file the manifest describes"):
        BACKENDS["onnxrt"].open(bundle, None, outputs)
