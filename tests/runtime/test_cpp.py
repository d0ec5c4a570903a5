"""runtime/cpp: what the C++ runtime makes, held against Python's; with a TensorRT that needs no GPU."""

import ctypes
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.manifest import HASH, hash_of
from edge_sampler.runtime.noise import SEEDS
from edge_sampler.runtime.verified import describe_files
from tests.conftest import run_main
from tests.fakes.cpp import VERSION, Run
from tests.runtime.test_cpp_parts import loaded, refused
from tests.runtime.test_page import change
from tests.runtime.test_trt import add_engine


@pytest.fixture
def engine(copy: Path) -> Path:
    """A bundle with an engine for one to four images."""
    add_engine(copy, "tensorrt", version=VERSION)
    return copy


def of_python(bundle: Path, out: Path, *arguments: str) -> np.ndarray:
    """What `runtime sample` makes."""
    run_main(main, "sample", str(bundle), *arguments, "--out", str(out))
    with np.load(out) as stored:
        found = next(stored[name] for name in stored.files if name != "seeds")
    return np.asarray(found)


@pytest.mark.parametrize("batch", ["1:2:4", "4:4:4", "1:16:16", "3:3:5"])
def test_the_example_makes_what_python_makes(copy: Path, tmp_path: Path, example: Run, batch: str) -> None:
    """Whatever the profile, seven images are split and padded to it. Noise is scaled as the sampler was fitted."""
    change(copy, temperature=0.5)
    profile = add_engine(copy, "tensorrt", batch, version=VERSION).batch
    out = ("--seeds", "0-4,77,9223372036854775807", "--out", tmp_path / "made.npy")
    result = example(copy, *out, FAKE_NVINFER_BATCH=f"{profile.min}:{profile.max}")
    assert result.returncode == 0, result.stderr
    assert "7 images, by tensorrt 11.0.0.12, Fake GPU, engines/one.engine" in result.stdout
    found, expected = (
        loaded(tmp_path / "made.npy"),
        of_python(copy, tmp_path / "p.npz", "--seeds", f"0-4,77,{SEEDS - 1}"),
    )
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found.dtype, found.shape) == (np.dtype(np.float32), (7, 1, 8, 8))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", ["7", "0,1,2,9,1", "labels.npy"])
def test_classes_and_uint8_go_through(conditional: Path, tmp_path: Path, example: Run, labels: str) -> None:
    folder = Path(shutil.copytree(conditional, tmp_path / "c"))
    add_engine(folder, "tensorrt", "2", version=VERSION)
    np.save(tmp_path / "labels.npy", np.array([3, 1, 4, 1, 5]))
    labels = str(tmp_path / labels) if labels.endswith(".npy") else labels
    told = ["--seeds", "0-4", "--condition", f"class_labels={labels}"]
    assert example(folder, *told, "--out", tmp_path / "made.npy").returncode == 0
    found, expected = loaded(tmp_path / "made.npy"), of_python(folder, tmp_path / "p.npz", *told)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_the_sheet_is_pythons(engine: Path, tmp_path: Path, example: Run) -> None:
    outs = ("--out", tmp_path / "sheet.ppm", "--out", tmp_path / "made.npy")
    assert example(engine, "--seeds", "0-4", *outs).returncode == 0
    run_main(main, "sample", str(engine), "--seeds", "0-4", "--out", str(tmp_path / "sheet.png"))
    pictures = [np.asarray(Image.open(tmp_path / f"sheet.{suffix}")).astype(int) for suffix in ("ppm", "png")]
    assert pictures[0].shape == pictures[1].shape
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert loaded(tmp_path / "made.npy").shape == (5, 1, 8, 8)


def test_a_class_out_of_range_is_one_line(conditional: Path, tmp_path: Path, example: Run) -> None:
    folder = Path(shutil.copytree(conditional, tmp_path / "c"))
    add_engine(folder, "tensorrt", "2", version=VERSION)
    result = example(folder, "--condition", "class_labels=10", "--out", tmp_path / "made.npy")
    refused(result, "class_labels holds 10, which is out of range", "int64 [], 0 to 9")


def test_nothing_is_deserialised_before_its_hash_is_verified(engine: Path, tmp_path: Path, example: Run) -> None:
    path = engine / "engines" / "one.engine"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:100] + b"x" + content[101:], b""):
        path.write_bytes(damaged)
        refused(example(engine, "--out", tmp_path / "made.npy"), "engines/one.engine", "SHA-256 differs")
    path.unlink()
    refused(example(engine, "--out", tmp_path / "made.npy"), "is missing, though the manifest lists it")
    assert not (tmp_path / "made.npy").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "11.0.0.2"}, ["needs tensorrt 11.0.0.2, and 11.0.0.12 is installed: build it again"]),
        ({"version": "11.0.0.1"}, ["needs tensorrt 11.0.0.1, and"]),
        ({"version": "11.0.0.120"}, ["needs tensorrt 11.0.0.120, and"]),
        ({"version": "11.0"}, ["needs tensorrt 11.0, and"]),
        ({"targets": ("sm89", "sm120")}, ["was built for sm89, sm120, and this GPU is sm86: build it again"]),
        ({"flavour": "tensorrt-rtx"}, ["holds no engine for it: python -m export engine BUNDLE --engine tensorrt"]),
    ],
)
def test_an_engine_for_something_else_says_what_it_wants(
    copy: Path, tmp_path: Path, example: Run, changes: dict[str, Any], words: list[str]
) -> None:
    add_engine(copy, changes.pop("flavour", "tensorrt"), **{"version": VERSION, **changes})
    refused(example(copy, "--out", tmp_path / "made.npy"), *words)


def test_the_engine_that_python_would_take_is_taken(copy: Path, tmp_path: Path, example: Run) -> None:
    """Of those that fit: half precision first, and unrolled before a loop. A Jetson's version has three numbers."""
    for precision, loop, version in (("fp32", False, VERSION), ("fp16", True, VERSION), ("fp16", False, "11.0.0")):
        file = f"engines/{precision}-{loop}.engine"
        add_engine(copy, "tensorrt", file=file, precision=precision, loop=loop, version=version)
    add_engine(copy, "tensorrt", file="engines/other.engine", precision="fp16", targets=("sm120",), version=VERSION)
    assert "engines/fp16-False.engine" in example(copy, "--seeds", "0", "--out", tmp_path / "made.npy").stdout


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("deserialize", ["tensorrt cannot load engines/one.engine: the plan is of another kind"]),
        ("context", ["made no execution context: is there enough device memory?"]),
        ("shape", ["[4, 1, 8, 8] is beyond what the engine was built for"]),
        ("execute", ["could not run the engine"]),
        ("cuMemAlloc_v2", ["cuMemAlloc_v2 failed: out of memory (CUDA error 2)"]),
        ("cuMemAllocHost_v2", ["cuMemAllocHost_v2 failed: out of memory"]),
        ("cuStreamCreate", ["cuStreamCreate failed"]),
        ("cuStreamSynchronize", ["cuStreamSynchronize failed"]),
    ],
)
def test_a_refusing_library_is_one_line_and_leaks_nothing(
    engine: Path, tmp_path: Path, example: Run, what: str, words: list[str]
) -> None:
    result = example(engine, "--out", tmp_path / "made.npy", FAKE_NVINFER_SPOIL=what)
    assert result.stderr.startswith("deserialize\n")
    result.stderr = result.stderr.removeprefix("deserialize\n")
    refused(result, *words)
    assert not (tmp_path / "made.npy").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "9223372036854775808"], ["seed 9223372036854775808 is out of range"]),
        (["--seeds", "99999999999999999999999"], ["is out of range; seeds are 0 to 9223372036854775807"]),
        (["--seeds", "-1"], ["'-1' is no seed"]),
        (["--seeds", "3-1"], ["run backwards"]),
        (["--seeds", "0-1000000"], ["more than 1000000"]),
        (["--seeds", "0-9223372036854775807"], ["more than 1000000"]),
        (["--seeds", ""], ["'' is no seed"]),
        (["--seeds"], ["--seeds needs a value"]),
        (["--out", "made.png"], ["made.png: unknown format; allowed: .npy, .ppm"]),
        (["--fast"], ["unknown option --fast"]),
        (["another"], ["another is another"]),
    ],
)
def test_wrong_arguments_are_one_line(
    engine: Path, tmp_path: Path, example: Run, arguments: list[str], words: list[str]
) -> None:
    refused(example(engine, "--out", tmp_path / "made.npy", *arguments), *words)


def test_files_stay_as_they_were(engine: Path, tmp_path: Path, example: Run) -> None:
    out = tmp_path / "made.npy"
    out.write_text("mine")
    refused(example(engine, "--out", out), "made.npy exists; choose another with --out, or add --force")
    assert out.read_text() == "mine"
    assert example(engine, "--out", out, "--force").returncode == 0
    assert loaded(out).shape == (16, 1, 8, 8)
    result = example(engine, "--out", tmp_path / "none" / "made.npy")
    assert (result.returncode, result.stderr.count("cannot write")) == (2, 1)
    assert not list(tmp_path.glob("*.new"))


def test_no_bundle_and_a_damaged_one_are_one_line(engine: Path, tmp_path: Path, example: Run) -> None:
    out = ("--out", tmp_path / "made.npy")
    refused(example(tmp_path / "none", *out), "no bundle at", "none")
    refused(example(*out), "usage: sample BUNDLE")
    path = engine / "manifest.json"
    manifest = json.loads(path.read_text())
    changes: list[dict[str, Any]] = [{"schema": 4}, {"dtype": "float8"}, {"inputs": []}, {"output": {}}]
    others: list[Any] = [[], None, *({**manifest, **change} for change in changes)]
    for damaged in others:
        path.write_text(json.dumps(damaged | {HASH: hash_of(damaged)} if isinstance(damaged, dict) else damaged))
        refused(example(engine, *out), "manifest.json is damaged, or of another version: ")
    path.write_text(json.dumps({**manifest, "nfe": manifest["nfe"] + 1}))
    refused(example(engine, *out), "its manifest_sha256 is not that of what it says")
    path.write_text(json.dumps(manifest)[:-9])
    refused(example(engine, *out), "manifest.json is damaged")


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin", "a/../../b", "a//b", "a/", "", "."])
def test_a_file_outside_of_the_bundle_is_refused(engine: Path, tmp_path: Path, example: Run, name: str) -> None:
    change(engine, files={**describe_files(engine), name: {"sha256": "0" * 64, "bytes": 1}})
    told = f"it lists '{name}', which is no file's name in a bundle"
    refused(example(engine, "--out", tmp_path / "made.npy"), told)


def test_no_driver_is_one_line(engine: Path, tmp_path: Path, example: Run, fake_cuda_library: Path) -> None:
    library = Path(shutil.copytree(example("--help").args[0].parent, tmp_path / "library"))
    (library / "libcuda.so.1").unlink()
    result = example(engine, "--out", tmp_path / "made.npy", LD_LIBRARY_PATH=str(library))
    if result.returncode == 0 or "libcuda" not in result.stderr:
        pytest.skip("this machine has a driver")
    refused(result, "no NVIDIA driver here (libcuda.so.1 cannot be loaded)")


def test_what_the_header_asks_of_the_library_is_there() -> None:
    """Its version in four numbers is what Python's module says and a manifest records."""
    real, libs = pytest.importorskip("tensorrt_rtx"), pytest.importorskip("tensorrt_rtx_libs")
    library = ctypes.CDLL(str(next(Path(libs.__file__).parent.glob("libtensorrt_rtx.so*"))))
    numbers = [getattr(library, f"getInferLib{of}Version")() for of in ("Major", "Minor", "Patch", "Build")]
    assert ".".join(map(str, numbers)) == real.__version__
    assert library.createInferRuntime_INTERNAL
