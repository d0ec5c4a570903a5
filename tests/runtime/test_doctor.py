"""The doctor says what is here, what runs, and what would change that."""

import ctypes
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edge_sampler.runtime import doctor
from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.backends import onnxrt_module, tensorrt_module
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import LIBRARIES, Batch, Engine
from edge_sampler.runtime.errors import UserError
from tests.fakes.tensorrt import make


def reasons(bundle: Bundle | None = None) -> dict[str, str | None]:
    return {finding.backend: finding.reason for finding in doctor.findings(bundle)}


def exit_status(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["runtime", "doctor", *arguments])
        return main()


@pytest.fixture
def libraries(fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, and both engine libraries."""
    for flavour, module in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, module, make(fake_cuda, "10.3.0", rtx=flavour == "tensorrt-rtx"))


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Another onnxruntime."""
    module = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def test_a_machine_without_a_gpu(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status() == exit_status(str(made)) == doctor.ON_CPU
    said = capsys.readouterr().out
    assert f"NumPy {np.__version__}" in said
    assert "CPUExecutionProvider" in said
    found = reasons()
    assert found.pop("onnxrt") is None
    assert all(found.values())
    assert "pip install onnxruntime-gpu" in str(found["onnxrt-cuda"])


@pytest.mark.usefixtures("libraries")
def test_a_machine_with_one(made: Path) -> None:
    assert exit_status() == doctor.ON_GPU
    facts = dict(doctor.machine())
    assert facts["GPU"] == "Fake GPU, sm86, 4.0 GiB; driver for CUDA 12.6"
    assert facts["tensorrt"] == facts["tensorrt-rtx"] == "10.3.0"
    assert reasons()["tensorrt"] is None
    assert "holds no engine" in str(reasons(Bundle.open(made))["tensorrt"])
    assert exit_status(str(made)) == doctor.ON_CPU  # its graph runs, and no engine of it is there
    engine = Engine("engines/a", "tensorrt", "10.16", ("sm86",), "fp16", Batch(1, 1, 1))
    bundle = Bundle(made, {**Bundle.open(made).manifest, "engines": [engine.record()]})
    assert "needs tensorrt 10.16, and 10.3.0 is installed" in str(reasons(bundle)["tensorrt"])


def test_a_damaged_bundle_is_no_diagnosis(copy: Path) -> None:
    (copy / "sampler.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="not the file the manifest describes"):
        exit_status(str(copy))


def test_nothing_runs_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert exit_status() == doctor.NOWHERE
    assert reasons()["onnxrt"] == "install onnxruntime"


def test_an_old_onnxruntime_is_refused(replaced: SimpleNamespace) -> None:
    replaced.__version__ = "1.17.3"
    with pytest.raises(UserError, match=r"^onnxruntime 1\.18 or later is needed, and 1\.17\.3 is installed"):
        onnxrt_module.library()
    replaced.__version__ = "1.18.0+nv24.08"
    assert onnxrt_module.library() is replaced


def test_an_onnxruntime_for_numpy_1_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(np, "__version__", "2.2.6")
    with pytest.raises(UserError, match=r"cannot be loaded \(ImportError\).*\(2\.2\.6 is installed\): pip install 'n"):
        onnxrt_module.library()
    monkeypatch.setattr(np, "__version__", "1.26.4")
    with pytest.raises(UserError, match=r"cannot be loaded \(ImportError\)$"):
        onnxrt_module.library()


def test_jetpacks_tensorrt_is_found_behind_an_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match="tensorrt is not installed"):
        tensorrt_module.library("tensorrt", tmp_path)
    (tmp_path / "python3.10" / "dist-packages" / "tensorrt").mkdir(parents=True)
    with pytest.raises(UserError, match="--system-site-packages"):
        tensorrt_module.library("tensorrt", tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n", "Jetson Linux 36.4.3, JetPack 6"),
        ("# R35 (release), REVISION: 6.1, GCID: 1\n", "Jetson Linux 35.6.1, JetPack 5"),
        ("# R38 (release), REVISION: 2.0, GCID: 1\n", "Jetson Linux 38.2.0, JetPack 7"),
        ("# R99 (release), REVISION: 1.0, GCID: 1\n", "Jetson Linux 99.1.0"),
        ("something else", "of an unknown release"),
        (None, None),
    ],
)
def test_the_release_of_a_jetson(text: str | None, expected: str | None, tmp_path: Path) -> None:
    path = tmp_path / "nv_tegra_release"
    if text is not None:
        path.write_text(text)
    assert doctor.jetson_linux(path) == expected


def test_the_exit_status_says_where_it_runs() -> None:
    """As docs/deploy.md has it."""
    everywhere = [doctor.Finding(name, None) for name in ("onnxrt-cuda", "onnxrt")]
    nowhere = [doctor.Finding(name, "no") for name in ("onnxrt-cuda", "onnxrt")]
    assert doctor.status(everywhere) == doctor.status([*nowhere, everywhere[0]]) == 0
    assert doctor.status([nowhere[0], everywhere[1]]) == 1
    assert doctor.status(nowhere) == doctor.status([]) == 2
