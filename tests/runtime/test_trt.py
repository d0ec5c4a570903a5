"""Engines through the runtime, end to end, with a TensorRT and a CUDA driver that need no GPU."""

import ctypes
import inspect
import json
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_sampler import runtime
from edge_sampler.runtime.backends.runtime_cache import RuntimeCache
from edge_sampler.runtime.backends.tensorrt_module import Library, logger
from edge_sampler.runtime.backends.tensorrt_module import library as library_of
from edge_sampler.runtime.bench import UNROLLED, bench
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import BASELINE, PYTORCH, compare, within
from edge_sampler.runtime.engine_record import LIBRARIES, Batch, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import facts_of, write_manifest
from edge_sampler.runtime.verified import describe_files
from tests.bundles import remake_manifest
from tests.fakes.tensorrt import make

if TYPE_CHECKING:
    import tensorrt

    _: Library = tensorrt  # a type checker holds what we ask of the library against TensorRT's stubs

VERSION = "11.0"
FLAVOURS = tuple(LIBRARIES)


@pytest.fixture(params=FLAVOURS)
def flavour(
    request: pytest.FixtureRequest, fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[str]:
    for name, module in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, module, make(fake_cuda, VERSION, rtx=name == "tensorrt-rtx"))
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    logger.cache_clear()
    yield str(request.param)
    logger.cache_clear()  # the fake library's is not for the real one


@pytest.fixture
def library(flavour: str) -> Any:
    return library_of(flavour)


def add_engine(folder: Path, flavour: str, batch: str = "1:2:4", **changes: Any) -> Engine:
    """Gives the bundle an engine as the fake library reads it: the graph itself."""
    name = changes.pop("file", "engines/one.engine")
    recorded = {"flavour": flavour, "version": VERSION, "targets": ("sm86",), "precision": "fp32", **changes}
    engine = Engine(file=name, batch=Batch.parse(batch), **recorded)
    bundle = Bundle.open(folder)
    (folder / "engines").mkdir(exist_ok=True)
    shutil.copy(folder / bundle.graph_name(), folder / name)
    facts = facts_of(bundle.manifest)
    facts["engines"] = [*facts.get("engines", []), engine.record()]
    write_manifest(folder / "manifest.json", facts, describe_files(folder))
    return engine


@pytest.mark.parametrize("batch", ["1:2:4", "4:4:4", "1:16:16", "3:3:5"])
def test_an_engine_makes_what_the_graph_makes(copy: Path, flavour: str, batch: str) -> None:
    """Whatever the profile, seven images are split and padded to it."""
    add_engine(copy, flavour, batch)
    with runtime.load(copy, "onnxrt") as sampler:
        expected = sampler.sample(range(7))
    with runtime.load(copy, flavour) as sampler:
        assert "Fake GPU" in sampler.description
        for _ in range(3):  # as it is; captured; replayed
            np.testing.assert_allclose(sampler.sample(range(7)), expected, atol=1e-5)
        np.testing.assert_allclose(sampler.sample([5]), expected[5:6], atol=1e-5)


def test_batches_of_several_sizes_do_not_disturb_each_other(copy: Path, flavour: str) -> None:
    """Each size is captured and replayed, in turn, with other noise each time."""
    add_engine(copy, flavour)
    turns = [range(start, start + size) for start in range(0, 50, 10) for size in (4, 3, 1)]
    with runtime.load(copy, "onnxrt") as sampler, runtime.load(copy, flavour) as engine:
        for seeds in turns:
            np.testing.assert_allclose(engine.sample(seeds), sampler.sample(seeds), atol=1e-5)


def test_classes_and_uint8_go_through(conditional: Path, tmp_path: Path, flavour: str) -> None:
    folder = Path(shutil.copytree(conditional, tmp_path / "c"))
    add_engine(folder, flavour, "2")
    labels = [0, 1, 2, 9, 1]
    with runtime.load(folder, "onnxrt") as sampler, runtime.load(folder, flavour) as engine:
        expected, found = sampler.sample(range(5), class_labels=labels), engine.sample(range(5), class_labels=labels)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_second_run_of_a_batch_is_a_captured_graph(copy: Path, flavour: str, fake_cuda: ctypes.CDLL) -> None:
    add_engine(copy, flavour)
    library: Any = library_of(flavour)
    with runtime.load(copy, flavour) as sampler:
        for _ in range(5):
            sampler.sample(range(4))
        assert (library.calls.count("execute"), fake_cuda.fake_launches()) == (2, 4)  # one to warm up, one captured
        sampler.sample(range(3))
        assert library.calls.count("execute") == 4  # another size is another graph


def test_what_cannot_be_captured_still_runs(copy: Path, flavour: str, library: Any, fake_cuda: ctypes.CDLL) -> None:
    add_engine(copy, flavour)
    library.spoil.add("capture")
    with runtime.load(copy, flavour) as sampler:
        first = sampler.sample(range(4))
        library.spoil.clear()
        np.testing.assert_array_equal(sampler.sample(range(4)), first)
        assert fake_cuda.fake_launches() == 0


def test_threads_have_a_context_each(copy: Path, flavour: str, library: Any) -> None:
    add_engine(copy, flavour)
    with runtime.load(copy, "onnxrt") as sampler:
        expected = [sampler.sample(range(k, k + 3)) for k in range(12)]
    with runtime.load(copy, flavour) as sampler, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: sampler.sample(range(k, k + 3)), range(12)))
        assert 1 <= sum(call.startswith("context") for call in library.calls) <= 4
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "after"),
    [("cuMemAlloc_v2", 0), ("cuMemAlloc_v2", 1), ("cuMemAllocHost_v2", 1), ("cuStreamCreate", 0)],
)
def test_out_of_memory_is_one_line_and_leaks_nothing(
    copy: Path, flavour: str, fake_cuda: ctypes.CDLL, call: str, after: int
) -> None:
    add_engine(copy, flavour)
    with runtime.load(copy, flavour) as sampler:
        before = fake_cuda.fake_live()
        fake_cuda.fake_fail(call.encode(), after, 2)
        with pytest.raises(UserError, match=f"{call} failed: out of memory"):
            sampler.sample([0])
        assert fake_cuda.fake_live() == before
        assert sampler.sample([0]).shape == (1, 1, 8, 8)  # once there is room again


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("deserialize", "cannot load engines/one.engine: ERROR: the plan is of another kind"),
        ("context", "no execution context: is there enough device memory"),
        ("execute", "could not run the engine"),
    ],
)
def test_a_refusing_library_is_one_line(copy: Path, flavour: str, library: Any, what: str, message: str) -> None:
    add_engine(copy, flavour)
    library.spoil.add(what)
    with pytest.raises(UserError, match=message), runtime.load(copy, flavour) as sampler:
        sampler.sample([0])


def test_nothing_is_deserialised_before_its_hash_is_verified(copy: Path, flavour: str, library: Any) -> None:
    engine = add_engine(copy, flavour)
    path = copy / engine.file
    content = bytearray(path.read_bytes())
    for damaged in (content[:-1], content[:100] + b"x" + content[101:], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="SHA-256 differs"):
            runtime.load(copy, flavour)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        runtime.load(copy, flavour)
    assert "deserialize" not in library.calls


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.3"}, "needs {flavour} 10.3, and 11.0 is installed"),
        ({"targets": ("sm89", "sm120")}, "was built for sm89, sm120, and this GPU is sm86"),
        ({"precision": "fp16"}, "holds no fp32 engine"),
    ],
)
def test_an_engine_for_something_else_says_what_it_wants(
    copy: Path, flavour: str, library: Any, changes: dict[str, Any], message: str
) -> None:
    add_engine(copy, flavour, **changes)
    with pytest.raises(UserError, match=message.format(flavour=flavour)):
        runtime.load(copy, flavour, "fp32")
    assert "deserialize" not in library.calls


def test_an_engine_of_the_other_flavour_does_not_count(copy: Path, flavour: str) -> None:
    add_engine(copy, next(other for other in FLAVOURS if other != flavour))
    with pytest.raises(UserError, match=rf"holds no engine for it: .* --engine {flavour}"):
        runtime.load(copy, flavour)


def test_auto_takes_the_engine_that_fits_and_says_so(copy: Path, flavour: str) -> None:
    with runtime.load(copy) as sampler:
        assert "CPUExecutionProvider" in sampler.description
    add_engine(copy, flavour, file="engines/other.engine", targets=("sm120",))
    with runtime.load(copy) as sampler:
        assert "CPUExecutionProvider" in sampler.description
    add_engine(copy, flavour)
    with runtime.load(copy) as sampler:
        assert "engines/one.engine" in sampler.description


def test_the_fastest_engine_is_taken_unless_another_is_named(copy: Path, flavour: str) -> None:
    """Half precision first, and unrolled before a loop; in whatever order they stand."""
    made: dict[str, dict[str, Any]] = {
        f"engines/{precision}-{loop}.engine": {"precision": precision, "loop": loop}
        for precision in ("fp32", "fp16")
        for loop in (True, False)
    }
    for file, changes in made.items():
        add_engine(copy, flavour, file=file, **changes)
    for precision, expected in ((None, "fp16-False"), ("fp16", "fp16-False"), ("fp32", "fp32-False")):
        with runtime.load(copy, flavour, precision) as sampler:
            assert f"engines/{expected}.engine" in sampler.description


@pytest.mark.parametrize("changes", [{"precision": "int 4"}, {"flavour": "openvino"}, {"batch": {"min": 2}}])
def test_a_damaged_record_is_one_line(copy: Path, flavour: str, changes: dict[str, Any]) -> None:
    add_engine(copy, flavour)
    remake_manifest(copy, lambda facts: facts["engines"][0].update(changes))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        runtime.load(copy, flavour)


def test_a_batch_beyond_the_profile_is_refused(copy: Path, flavour: str) -> None:
    add_engine(copy, flavour)
    with runtime.load(copy, flavour) as sampler, pytest.raises(UserError, match=r"batch is 5; .* at most 4"):
        sampler.sample(range(8), batch=5)
    with pytest.raises(UserError, match="batch is 5, and the engine takes 4"):
        bench(Bundle.open(copy), 5, 1, flavour)


def test_compare_holds_engines_against_the_rest(copy: Path, flavour: str) -> None:
    add_engine(copy, flavour)
    found = compare(Bundle.open(copy), None, ["onnxrt", flavour])
    assert {(d.first, d.second) for d in found if flavour in (d.first, d.second)} == {
        ("onnxrt", flavour),
        (flavour, BASELINE),
        (flavour, PYTORCH),
    }
    assert within(found, None)
    assert not within(compare(Bundle.open(copy), [7, 8], ["onnxrt", flavour]), 0.0)


def test_bench_tells_what_happens_inside(copy: Path, flavour: str) -> None:
    add_engine(copy, flavour)
    what, timings, left_out = bench(Bundle.open(copy), 3, 1, flavour)
    assert "engines/one.engine" in what
    summary = next(timing for timing in timings if timing.name == UNROLLED).summary()
    assert set(summary["spans"]) == {"host_to_device", "compute", "device_to_host"}
    assert min(summary["spans"].values()) >= 0
    assert summary["spans"]["compute"] == max(summary["spans"].values())
    assert summary["memory_bytes"] > 0
    assert summary["over_limit"] is None
    assert any("engines of whole samplers only" in line for line in left_out)
    json.dumps(summary)


def test_kernels_of_tensorrt_rtx_are_kept(copy: Path, flavour: str, library: Any, tmp_path: Path) -> None:
    add_engine(copy, flavour)
    for _ in range(2):
        with runtime.load(copy, flavour) as sampler:
            sampler.sample([0])
    kept = flavour == "tensorrt-rtx"
    assert (tmp_path / "cache" / "rtx-kernels").exists() == kept
    assert library.calls.count("cache b'kernels'") == kept  # the second time
    assert library.calls.count(f"context {int(kept)}") == 2


def test_stubs_alone_are_not_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    with pytest.raises(UserError, match=r"tensorrt is not installed: .*JetPack"):
        library_of("tensorrt")


def test_the_fake_offers_nothing_that_the_real_library_lacks(fake_cuda: ctypes.CDLL) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    fake = make(fake_cuda, VERSION, rtx=True)
    for name, offered in vars(fake).items():
        if inspect.isclass(offered) and offered is not object:
            public = {n for n in vars(offered) if not n.startswith("_")}
            lacking = {n for n in public if not hasattr(getattr(real, name), n)}
            assert not lacking, name
    assert hasattr(real.DynamicShapesKernelSpecializationStrategy, "EAGER")
    assert all(hasattr(real, name) for name in Library.__annotations__)


def test_compiled_kernels_are_kept_by_gpu(made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those of one GPU model would be loaded on another."""
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path))
    bundle = SimpleNamespace(manifest={"files": {"engines/a.engine": {"sha256": "0" * 64}}})
    engine = SimpleNamespace(file="engines/a.engine", version="1.7")
    devices = [SimpleNamespace(name=name) for name in ("RTX 4090", "RTX 3060", "RTX 4090")]
    paths = [RuntimeCache(bundle, engine, device)._path for device in devices]  # type: ignore[arg-type]
    assert paths[0] == paths[2] != paths[1]
