"""Polygraphy's command lines on a bundle's files, as docs/deploy.md gives them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from polygraphy.comparator import RunResults

from edge_sampler.export.engine_command import main as engine_main
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.images import to_uint8
from tests.bundles import remake_manifest
from tests.conftest import run_main

ROOT = Path(__file__).parent.parent
INPUTS = ("--data-loader-script", str(ROOT / "runtime" / "polygraphy_inputs.py"))


def polygraphy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("polygraphy")), *arguments],
        cwd=folder,
        env={
            "PYTHONPATH": str(ROOT),
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder.parent),
            "POLYGRAPHY_USE_TENSORRT_RTX": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_polygraphy_compares_with_pytorch(made: Path, copy: Path) -> None:
    compared = polygraphy(
        made, "run", "sampler.onnx", "--onnxrt", *INPUTS, "--load-outputs", "reference.json", "--atol", "1e-4"
    )
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "PASSED" in compared.stdout
    with np.load(copy / "reference.npz") as stored:
        other = {name: stored[name] for name in stored.files}
    other["seeds"] = other["seeds"] + 100
    np.savez(copy / "reference.npz", **other)
    remake_manifest(copy)
    assert (
        polygraphy(
            copy, "run", "sampler.onnx", "--onnxrt", *INPUTS, "--load-outputs", "reference.json", "--atol", "1e-4"
        ).returncode
        != 0
    )


def test_polygraphy_is_fed_the_conditions(conditional: Path) -> None:
    run = ("run", "sampler.onnx", "--onnxrt", *INPUTS, "--load-outputs", "reference.json", "--atol", "1")
    compared = polygraphy(conditional, *run)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "class_labels" in compared.stdout


@pytest.mark.parametrize("graph", ["sampler.onnx", "sampler-fp16.onnx"])
def test_polygraphy_reads_and_builds_our_graphs(copy: Path, graph: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    if graph != "sampler.onnx":  # which is there
        run_main(engine_main, str(copy), "--precision", "fp16")
    inspected = polygraphy(copy, "inspect", "model", graph)
    assert "noise [dtype=float32, shape=('batch', 1, 8, 8)]" in inspected.stdout
    capable = polygraphy(copy, "inspect", "capability", graph)
    assert "fully supported by TensorRT" in capable.stdout
    converted = polygraphy(copy, "convert", graph, "--convert-to", "trt", "--strongly-typed", "-o", "other.engine")
    assert converted.returncode == 0, converted.stdout + converted.stderr
    assert (copy / "other.engine").stat().st_size > 1_000_000


@pytest.mark.parametrize("fixture", ["made", "conditional"])
def test_polygraphy_gets_what_pytorch_made(fixture: str, request: pytest.FixtureRequest) -> None:
    """In the type that the graph has: floats, or bytes."""
    bundle = Bundle.open(request.getfixturevalue(fixture))
    (_, (result, *_)), *_ = RunResults.load(str(bundle.file("reference.json")))
    made = bundle.reference()["made"]
    expected = to_uint8(made) if bundle.dtype == "uint8" else made
    assert np.ptp(expected) > 0
    np.testing.assert_array_equal(result[bundle.output.name], expected)
