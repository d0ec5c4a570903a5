"""Engines with conditions and axes with names: what they are fed, and what is kept for each size."""

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.export.save import save_checked
from edge_sampler.runtime.backends import trt
from edge_sampler.runtime.backends.onnxrt import Session as CpuSession
from edge_sampler.runtime.backends.tensorrt_module import logger
from edge_sampler.runtime.engine_record import LIBRARIES, Batch, Engine
from edge_sampler.runtime.errors import UserError
from tests.export.test_conditions import PLAN, case, drawn
from tests.fakes.tensorrt import make

FILE = "engines/one.engine"


@pytest.fixture(params=LIBRARIES)
def library(
    request: pytest.FixtureRequest, fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Any]:
    module = make(fake_cuda, "11.0", rtx=request.param == "tensorrt-rtx")
    monkeypatch.setitem(sys.modules, LIBRARIES[request.param], module)
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    logger.cache_clear()
    module.flavour = request.param
    yield module
    logger.cache_clear()


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "s.onnx"
    save_checked(case("frames, stages").draw("unrolled", PLAN), path)
    return path


def opened(library: Any, graph: Path, **options: int) -> trt.Session:
    """An engine of the fake library is the graph itself."""
    content = graph.read_bytes()
    files = {FILE: {"sha256": hashlib.sha256(content).hexdigest()}}
    bundle: Any = SimpleNamespace(read=lambda name: content, manifest={"files": files})
    return trt.Session(bundle, Engine(FILE, library.flavour, "11.0", ("sm86",), "fp32", Batch(1, 2, 2)), **options)


def feed_of(length: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(seed).standard_normal((2, length, 20), np.float32)
    return {"noise": noise, **drawn(case("frames, stages").model, length, tokens)}


def test_every_size_runs_and_is_captured(library: Any, graph: Path) -> None:
    sizes = [(8, 2), (16, 2), (16, 12), (8, 2)]
    with CpuSession(graph) as cpu, opened(library, graph) as engine:
        for turn, (length, tokens) in enumerate(sizes * 3):
            feed = feed_of(length, tokens, turn)
            feed = {name: np.concatenate([array, array[:1]]) for name, array in feed.items()}  # three: two and one
            np.testing.assert_allclose(engine.run(feed)["audio"], cpu.run(feed)["audio"], atol=1e-5)
        assert library.calls.count("execute") == 2 * 2 * 3  # to warm up and to capture; two batches, three sizes


def test_few_lanes_are_kept(library: Any, graph: Path, fake_cuda: ctypes.CDLL) -> None:
    with opened(library, graph, most_lanes=2) as engine:
        live = []
        for length in (8, 9, 10, 11, 8, 12):
            engine.run(feed_of(length, 2))
            live.append(fake_cuda.fake_live())
        assert live[0] < live[1] == live[2] == live[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": None}, "the engine takes noise, words, mask, and was given noise, mask"),
        (
            {"more": np.zeros(2, np.float32)},
            "takes noise, words, mask, and was given noise, words, mask, more",
        ),
        (
            {"words": np.zeros((2, 4), np.float32)},
            r"words is float32 \[2, 4\]; .* takes int64 \[batch, 1 to 64\]",
        ),
        ({"noise": np.zeros((2, 8, 21), np.float32)}, r"noise is float32 \[2, 8, 21\]; .* \[batch, 1 to 64, 20\]"),
        (
            {"words": np.zeros((2, 65), np.int64)},
            r"words is int64 \[2, 65\]; .* takes int64 \[batch, 1 to 64\]",
        ),
        ({"words": np.zeros(2, np.int64)}, r"words is int64 \[2\]"),
        ({"words": np.zeros((3, 4), np.int64)}, r"words is int64 \[3, 4\]; .*of one batch for all"),
    ],
)
def test_a_wrong_feed_is_one_line_and_runs_nothing(
    library: Any, graph: Path, changes: dict[str, Any], message: str
) -> None:
    feed = {name: array for name, array in {**feed_of(8, 2), **changes}.items() if array is not None}
    with opened(library, graph) as engine:
        for use in (engine.run, engine.spans):
            with pytest.raises(UserError, match=message):
                use(feed)
    assert "execute" not in library.calls


def test_sizes_beyond_the_profile_are_one_line(library: Any, graph: Path) -> None:
    library.spoil.add("shape")
    with opened(library, graph) as engine, pytest.raises(UserError, match=r"is beyond what the engine was built for"):
        engine.run(feed_of(8, 2))


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(library: Any, graph: Path) -> None:
    engine = opened(library, graph)
    with engine:
        engine.run(feed_of(8, 2))
    engine.__exit__(None, None, None)
    with pytest.raises(UserError, match="is closed"):
        engine.run(feed_of(8, 2))
