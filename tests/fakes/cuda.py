"""A CUDA driver for machines without a GPU."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from edge_sampler.runtime import cuda


@pytest.fixture(scope="session")
def fake_cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to build the fake CUDA driver with")
    library = tmp_path_factory.mktemp("cuda") / "libcuda.so"
    source = Path(__file__).with_name("cuda.c")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return library


@pytest.fixture
def fake_cuda(fake_cuda_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The driver that runtime.cuda finds, fresh for each test; at the end nothing made on it may be left."""
    copy = shutil.copy(fake_cuda_library, tmp_path)  # another path is another library, with counters of its own
    monkeypatch.setattr(cuda, "driver", partial(cuda.driver, str(copy)))
    library = ctypes.CDLL(str(copy))
    library.fake_capacity.argtypes = (ctypes.c_size_t,)
    library.fake_fail.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int)
    library.fake_enqueue.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.fake_spoil_capture.argtypes = (ctypes.c_void_p,)
    yield library
    assert library.fake_live() == 0
