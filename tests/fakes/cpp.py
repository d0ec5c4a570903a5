"""The C++ runtime and its example, compiled; with a TensorRT and a driver for machines without a GPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HEADERS, FAKES = ROOT / "runtime" / "cpp", ROOT / "tests" / "fakes"
STRICT = ("-std=c++17", "-Wall", "-Wextra", "-Wconversion", "-Werror")
SANITIZED = "-fsanitize=address"  # memory out of bounds ends the program
VERSION = "11.0.0.12"  # of the fake library

Run = Callable[..., subprocess.CompletedProcess[str]]


def compile_cpp(out: Path, source: Path, *arguments: str) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    subprocess.run([compiler, *STRICT, str(source), *arguments, "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory, fake_cuda_library: Path) -> Run:
    """The example, as its head comment compiles it but for warnings and the fake TensorRT."""
    from tests.conftest import once

    folder = once("cpp-example", lambda new: compile_example(new, fake_cuda_library), tmp_path_factory)
    program = folder / "sample"

    def run(*arguments: object, program: Path = program, **environment: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"LD_LIBRARY_PATH": str(folder), "FAKE_NVINFER_PYTHON": sys.executable} | environment
        env["ASAN_OPTIONS"] = "detect_leaks=0"  # it cannot where processes are traced; the fakes count
        return subprocess.run([program, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=60)

    return run


def compile_example(folder: Path, fake_cuda_library: Path) -> None:
    folder.mkdir()
    shutil.copy(fake_cuda_library, folder / "libcuda.so.1")
    child = f'-DFAKE_NVINFER_CHILD="{FAKES / "nvinfer_child.py"}"'
    library = compile_cpp(folder / "libnvinfer.so", FAKES / "nvinfer.cpp", child, "-shared", "-fPIC")
    flags = (f"-I{FAKES}", f"-L{library.parent}", "-lnvinfer", "-ldl")
    compile_cpp(folder / "sample", HEADERS / "sample.cpp", *flags)
    compile_cpp(folder / "twice", FAKES / "cpp_twice.cpp", f"-I{HEADERS}", "-pthread", SANITIZED, *flags)
