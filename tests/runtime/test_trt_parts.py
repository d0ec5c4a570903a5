"""An engine of one node, on a TensorRT and a driver that need no GPU: lanes, their graphs, and what is freed."""

import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import trt
from edge_sampler.runtime.backends.runtime_cache import RuntimeCache
from edge_sampler.runtime.backends.tensorrt_module import logger
from edge_sampler.runtime.backends.trt import BACKENDS, Session, find_engine
from edge_sampler.runtime.engine_record import LIBRARIES, Batch, Engine
from edge_sampler.runtime.errors import UserError
from tests.fakes.tensorrt import make

onnx = pytest.importorskip("onnx")
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
PROGRAM = f"{HEAD} a (float[batch, 2] noise, int64[batch] label) => (float[batch, 2] y) {{ y = Add(noise, noise) }}"
CONTENT = onnx.parser.parse_model(PROGRAM).SerializeToString()
RTX = "tensorrt-rtx"


@pytest.fixture
def library(fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """TensorRT-RTX's; TensorRT's is there as well."""
    made = {flavour: make(fake_cuda, "11.0", rtx=flavour == RTX) for flavour in LIBRARIES}
    for flavour, module in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, module, made[flavour])
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    logger.cache_clear()
    yield made[RTX]
    logger.cache_clear()


def engine(batch: str = "1:2:4", **change: Any) -> Engine:
    told = {"file": "engines/a", "flavour": RTX, "version": "11.0", "targets": ("sm86",), "precision": "fp32"}
    return Engine(**{**told, "batch": Batch.parse(batch), **change})


def bundle(*engines: Engine) -> Any:
    files = {one.file: {"sha256": "0123456789abcdef" * 4} for one in engines}
    return SimpleNamespace(folder=Path(), engines=engines, read=lambda name: CONTENT, manifest={"files": files})


def opened(batch: str = "1:2:4", most_lanes: int = trt.MOST_LANES, **change: Any) -> Session:
    one = engine(batch, **change)
    return Session(bundle(one), one, most_lanes)


def feed(count: int, start: int = 0) -> dict[str, np.ndarray]:
    noise = np.arange(2 * count, dtype=np.float32).reshape(count, 2) + start
    return {"noise": noise, "label": np.arange(count)}


def runs(session: Session, count: int, start: int = 0) -> None:
    given = feed(count, start)
    np.testing.assert_array_equal(session.run(given)["y"], 2 * given["noise"])


@pytest.mark.parametrize("batch", ["1:2:4", "4", "3:3:5", "1:16:16"])
def test_any_number_runs_whatever_the_profile(batch: str, library: Any) -> None:
    with opened(batch) as session:
        for count in (7, 1, 7, 4, 7):
            runs(session, count, count)
        assert session.largest_batch == Batch.parse(batch).max
        assert session.precision == "fp32"
        assert session.description == "tensorrt-rtx 11.0, Fake GPU, engines/a"


def test_the_second_run_of_a_size_is_captured_and_replayed(library: Any, fake_cuda: ctypes.CDLL) -> None:
    with opened() as session:
        assert session.captured_batches == set()
        for start in range(5):
            runs(session, 4, start)
        assert (library.calls.count("execute"), fake_cuda.fake_launches()) == (2, 4)
        assert session.captured_batches == {4}
        runs(session, 3)
        assert session.captured_batches == {3, 4}
        assert sum(call.startswith("context") for call in library.calls) == 2


def test_what_cannot_be_captured_runs_each_time(library: Any, fake_cuda: ctypes.CDLL) -> None:
    library.spoil.add("capture")
    with opened() as session:
        runs(session, 4)
        library.spoil.clear()
        for start in range(3):
            runs(session, 4, start)
        assert fake_cuda.fake_launches() == 0
        assert session.captured_batches == set()
        assert library.calls.count("execute") == 5  # once to warm up, once in vain


def test_spans_are_summed_over_a_calls_runs(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "elapsed", lambda start, end: 1.0)
    with opened() as session:
        spans = session.spans(feed(9))
    assert (spans.host_to_device, spans.compute, spans.device_to_host) == (3, 3, 3)  # type: ignore[union-attr]


def test_lanes_that_nobody_used_for_longest_make_room(library: Any, fake_cuda: ctypes.CDLL) -> None:
    with opened(most_lanes=2) as session:
        for count in (1, 2):
            runs(session, count)
        held = fake_cuda.fake_live()
        runs(session, 1)
        runs(session, 3)  # in the place of 2's
        assert [lane.batch for lane in session._lanes] == [1, 3]
        assert fake_cuda.fake_live() == held
        made = sum(call.startswith("context") for call in library.calls)
        runs(session, 1)
        assert sum(call.startswith("context") for call in library.calls) == made
        runs(session, 2)
        assert [lane.batch for lane in session._lanes] == [1, 2]


def test_threads_that_run_at_once_have_a_lane_each(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And share it one after the other."""
    both, compute = threading.Barrier(2), trt.Lane._compute

    def together(lane: trt.Lane) -> None:
        both.wait(60)
        compute(lane)

    with opened() as session:
        with monkeypatch.context() as patch:
            patch.setattr(trt.Lane, "_compute", together)
            failures = list[BaseException]()

            def run(start: int) -> None:
                try:
                    runs(session, 2, start)
                except BaseException as error:
                    failures.append(error)

            threads = [threading.Thread(target=run, args=(start,)) for start in (0, 9)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert not failures
        runs(session, 2)
        assert len(session._lanes) == 2


@pytest.mark.parametrize(
    ("call", "after"),
    [("cuMemAlloc_v2", 0), ("cuMemAlloc_v2", 2), ("cuMemAllocHost_v2", 1), ("cuStreamCreate", 0)],
)
def test_a_lane_that_fails_leaves_nothing(call: str, after: int, library: Any, fake_cuda: ctypes.CDLL) -> None:
    with opened() as session:
        before = fake_cuda.fake_live()
        fake_cuda.fake_fail(call.encode(), after, 2)
        with pytest.raises(UserError, match=f"{call} failed: out of memory"):
            session.run(feed(2))
        assert fake_cuda.fake_live() == before
        assert session._lanes == []
        runs(session, 2)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("deserialize", "^tensorrt-rtx cannot load engines/a: ERROR: the plan is of another kind"),
        ("context", "no execution context: is there enough device memory"),
        ("execute", "could not run the engine: is there enough device memory"),
        ("shape", r"label \[2\] is beyond what the engine was built for"),
    ],
)
def test_a_library_that_refuses_is_one_line(what: str, told: str, library: Any) -> None:
    library.spoil.add(what)
    with pytest.raises(UserError, match=told), opened() as session:
        session.run(feed(2))


def test_a_feed_is_checked_before_anything_runs(library: Any) -> None:
    with opened() as session:
        for use in (session.run, session.spans):
            with pytest.raises(UserError, match=r"noise is float32 \[2, 3\]; the engine takes float32 \[batch, 2\]"):
                use({**feed(2), "noise": np.zeros((2, 3), np.float32)})
        assert "execute" not in library.calls
    for use in (session.run, session.spans):
        with pytest.raises(UserError, match="engines/a is closed"):
            use(feed(2))
    session.__exit__(None, None, None)  # once more is no more


def test_kernels_are_kept_where_all_went_well(library: Any, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "rtx-kernels" / "0123456789abcdef-11.0-Fake-GPU.bin"
    session = opened()
    runs(session, 1)
    session.__exit__(KeyError, KeyError(), None)
    assert not path.exists()
    with opened() as session:
        runs(session, 1)
        runs(session, 2)
    assert path.read_bytes() == b"kernels"
    assert not [call for call in library.calls if call.startswith("cache")]
    path.write_bytes(b"fewer")
    with opened() as session:
        for count in (1, 2):
            runs(session, count)
    assert library.calls.count("cache b'fewer'") == 1  # lanes share them
    assert path.read_bytes() == b"kernels"  # those of this run, too
    with opened(flavour="tensorrt") as session:
        runs(session, 1)
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_without_a_cache_folder_nothing_is_kept(library: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise UserError("no home folder")

    monkeypatch.setattr("edge_sampler.runtime.backends.runtime_cache.cache_folder", none)
    with opened() as session:
        runs(session, 1)
    assert not (tmp_path / "cache").exists()
    device: Any = SimpleNamespace(name="RTX 4090 (16 GB)")
    one = engine()
    monkeypatch.setattr("edge_sampler.runtime.backends.runtime_cache.cache_folder", lambda: tmp_path)
    kept = RuntimeCache(bundle(one), one, device)
    assert kept._path == tmp_path / "rtx-kernels" / "0123456789abcdef-11.0-RTX-4090-16-GB-.bin"
    kept.save()  # of nothing
    assert not kept._path.exists()


def test_the_engine_that_fits_and_runs_fastest_is_taken(library: Any) -> None:
    made = [
        engine(file=f"{precision}-{loop}", precision=precision, loop=loop)
        for precision in ("int8", "fp32", "bf16", "fp16")
        for loop in (True, False)
    ]
    of = bundle(*made, engine(file="other", flavour="tensorrt", precision="fp16"))
    for precision, file in ((None, "fp16-False"), ("int8", "int8-False"), ("fp32", "fp32-False")):
        assert find_engine(of, RTX, precision, "sm86").file == file
    order = [find_engine(bundle(*made[place:]), RTX, None, None).file for place in (0, 2, 4, 6)]
    assert order == ["fp16-False"] * 4
    assert find_engine(bundle(*made[:6]), RTX, None, None).file == "bf16-False"
    assert find_engine(bundle(*made[:4]), RTX, None, None).file == "fp32-False"
    old = [engine(file="a", version="10.0"), engine(file="b", targets=("sm120",))]
    with pytest.raises(UserError, match=r"^a needs tensorrt-rtx 10\.0, and .*; b was built for sm120, and this GPU is"):
        find_engine(bundle(*old), RTX, None, "sm86")
    assert find_engine(bundle(*old), RTX, None, None).file == "b"
    told = "the bundle holds no {}engine for it: python -m export engine BUNDLE --engine tensorrt$"
    for precision, of_it in ((None, ""), ("int8", "int8 ")):
        with pytest.raises(UserError, match=told.format(of_it)):
            find_engine(bundle(*made), "tensorrt", precision, None)


def test_a_backend_says_what_it_lacks(
    library: Any, fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # where the bundle is
    one = next(backend for backend in BACKENDS if backend.name == RTX)
    assert [backend.name for backend in sorted(BACKENDS, key=lambda backend: backend.rank)] == list(LIBRARIES)
    assert "engines/a is missing, though the manifest lists it" in str(one.unable(bundle(engine()), None))
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "a").touch()
    assert (one.gpu, one.open_graph, one.lacks(), one.unable(bundle(engine()), None)) == (True, None, None, None)
    with one.open(bundle(engine()), "fp32", ()) as session:
        assert session.precision == "fp32"
    assert [one.precision(bundle(engine(), engine(precision="fp16")), of) for of in (None, "fp32")] == ["fp16", "fp32"]
    with pytest.raises(UserError, match="an engine gives its images alone; tensorrt-rtx cannot return a, b"):
        one.open(bundle(engine()), None, ("a", "b"))
    assert "this GPU is sm86" in str(one.unable(bundle(engine(targets=("sm90",))), None))
    assert "holds no fp16 engine" in str(one.unable(bundle(engine()), "fp16"))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "tensorrt_rtx is not installed: pip install tensorrt-rtx" in str(one.lacks())
