"""Engines: real TensorRT-RTX builds, on a machine without a GPU."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from edge_sampler.export.build_engine import build, engine_for, parsed, read_graph
from edge_sampler.export.engine_command import main
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.backends.tensorrt_module import library, logger
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.noise import unit_noise
from tests.conftest import export, relative, run_main, runs_fp8

ROOT = Path(__file__).parent.parent.parent
RTX = "tensorrt-rtx"
rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")


def add(folder: Path, *arguments: str) -> None:
    run_main(main, str(folder), *arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("precision", "batch", "targets"),
    [("fp32", "1", None), ("fp16", "1:4:16", "sm89,sm86"), ("bf16", "2:2:2", "sm120")],
)
def test_a_bundle_takes_an_engine(copy: Path, precision: str, batch: str, targets: str | None) -> None:
    before = content(copy)
    add(copy, "--engine", RTX, "--precision", precision, "--batch", batch, *(["--target", targets] if targets else []))
    bundle = Bundle.open(copy)
    (engine,) = bundle.engines
    assert (engine.flavour, engine.version, engine.precision) == (RTX, rtx.__version__, precision)
    assert engine.batch == Batch.parse(batch)
    assert set(engine.targets) == set((targets or "sm80,sm86,sm89,sm120").split(","))
    assert len(bundle.read(engine.file)) > 1_000_000
    bundle.file(engine.file.replace(".engine", ".log"))
    after = content(copy)
    added = set(after) - set(before)
    graph = set() if precision == "fp32" else {f"sampler-{precision}.onnx"}
    assert added == {engine.file, engine.file.replace(".engine", ".log")} | graph
    assert all(after[name] == before[name] for name in before if name not in ("manifest.json", "report.html"))
    if graph:
        bundle.file(graph.pop())
        error = bundle.manifest["precisions"][precision]
        assert 0 < error["rms_error"] < error["largest_error"] < 1


def network_of(folder: Path, precision: str, batch: str, look: Callable[[Any], None]) -> None:
    """Lets ``look`` see the network as TensorRT-RTX has read it."""
    engine = engine_for(RTX, None, precision, Batch.parse(batch))
    with parsed(library(RTX), logger(RTX), read_graph(Bundle.open(folder), engine), engine) as (_, network):
        look(network)


@pytest.mark.parametrize("which", ["made", "conditional"])
def test_the_parsed_network_has_the_types_that_the_graph_says(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(which), tmp_path / which))
    add(folder, "--precision", "fp16")

    def look(network: Any) -> None:
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
        assert len(convolutions) > 50
        assert {layer.get_output(0).dtype for layer in convolutions} == {rtx.float16}
        solver = [layer for layer in layers if layer.name.startswith("x_") and layer.type == rtx.LayerType.ELEMENTWISE]
        assert len(solver) > 3
        assert {layer.get_output(0).dtype for layer in solver} == {rtx.float32}
        softmax = [layer for layer in layers if layer.type == rtx.LayerType.SOFTMAX]
        assert {layer.get_output(0).dtype for layer in softmax} == {rtx.float32}
        names = {network.get_input(index).name: network.get_input(index).dtype for index in range(network.num_inputs)}
        assert names == {"noise": rtx.float32} | ({"class_labels": rtx.int64} if which == "conditional" else {})
        assert network.get_output(0).dtype == (rtx.uint8 if which == "conditional" else rtx.float32)

    network_of(folder, "fp16", "1:2:4", look)


FP8 = pytest.param("fp8", marks=pytest.mark.skipif(not runs_fp8(), reason="this ONNX Runtime moves no fp8 values"))


@pytest.mark.parametrize("precision", ["int8", "int8+fp16", FP8])
def test_layers_of_eight_bits_are_read_as_such(quantised: Path, precision: str) -> None:
    """Each of the network's inner convolutions multiplies what a dequantization restores, twice."""
    dtype, nfe = {"fp8": rtx.fp8}.get(precision, rtx.int8), Bundle.open(quantised).plan.nfe

    def look(network: Any) -> None:
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        restoring = {
            layer.get_output(0).name
            for layer in layers
            if layer.type == rtx.LayerType.DEQUANTIZE and layer.get_input(0).dtype == dtype
        }
        convolutions = [layer for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]
        operands = [[layer.get_input(k) for k in (0, 1)] for layer in convolutions]
        inner = [pair for pair in operands if all(one is not None and one.name in restoring for one in pair)]
        assert len(inner) == 30 * nfe
        assert len({weight.name for _, weight in inner}) == 30
        assert sum(layer.type == rtx.LayerType.QUANTIZE for layer in layers) <= 30 * nfe

    network_of(quantised, precision, "1", look)


def test_evaluations_share_kernels_though_not_scales(quantised: Path, tmp_path: Path) -> None:
    """An engine of eight bits is little larger: with a scale in each kernel's source it was eight times as large."""
    copy = Path(shutil.copytree(quantised, tmp_path / "b"))
    for precision in ("fp32", "int8+fp16"):
        add(copy, "--engine", RTX, "--target", "sm89", "--precision", precision)
    sizes = [len(Bundle.open(copy).read(engine.file)) for engine in Bundle.open(copy).engines]
    assert sizes[1] < 2 * sizes[0]


def test_normalizations_are_one_layer_and_share_their_scales(made: Path) -> None:
    nfe = Bundle.open(made).plan.nfe

    def look(network: Any) -> None:
        layers = [network.get_layer(index) for index in range(network.num_layers)]
        norms = [layer for layer in layers if layer.type == rtx.LayerType.NORMALIZATION]
        written = Counter(node.op_type for node in ir.load(made / "sampler.onnx").graph)
        assert len(norms) == written["LayerNormalization"]
        scales = {norm.get_input(1).name for norm in norms}
        assert len(scales) == written["BatchNormalization"] / nfe + 1  # attention's are all ones
        used = {layer.get_input(k).name for layer in layers for k in range(layer.num_inputs) if layer.get_input(k)}
        idle = sum(layer.get_output(0).name not in used for layer in layers)
        assert (len(layers) - idle) / nfe < 300

    network_of(made, "fp32", "1", look)


def test_a_conditional_uint8_engine_is_built(conditional: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(conditional, tmp_path / "c"))
    add(folder, "--engine", RTX, "--precision", "fp16", "--target", "sm86")
    assert Bundle.open(folder).engines[0].precision == "fp16"


def test_a_loop_is_built_in_the_time_of_one_evaluation(made: Path, copy: Path) -> None:
    """Told by its layers: they hardly grow with the evaluations that the loop makes."""
    add(copy, "--engine", RTX, "--precision", "fp16", "--batch", "1:4:16", "--loop")
    (engine,) = Bundle.open(copy).engines
    assert engine.loop
    assert engine.file.endswith("-b1_4_16-loop.engine")
    layers = {loop: build_layers(made, loop) for loop in (False, True)}
    assert layers[True] < layers[False] / Bundle.open(made).plan.nfe + 150


def build_layers(folder: Path, loop: bool) -> int:
    engine = engine_for(RTX, "sm86", "fp32", Batch(1, 1, 1), loop)
    return build(read_graph(Bundle.open(folder), engine), engine).layers


def test_building_twice_gives_the_same_engine(made: Path) -> None:
    engine = engine_for(RTX, "sm86", "fp32", Batch(1, 1, 1))
    first, second = (bytes(build(ir.load(made / "sampler.onnx"), engine).engine_bytes) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("batch", [None, 3])
def test_what_tensorrt_gets_computes_the_same(made: Path, tmp_path: Path, batch: int | None) -> None:
    model = ir.load(made / "sampler.onnx")
    prepare_for_tensorrt(model, batch)
    assert {node.op_type for node in model.graph} >= {"GroupNormalization"}
    save_checked(model, tmp_path / "prepared.onnx")
    feed = {"noise": unit_noise(range(3), (1, 8, 8))}
    with Session(tmp_path / "prepared.onnx") as prepared, Session(made / "sampler.onnx") as original:
        assert relative(prepared.run(feed)["images"], original.run(feed)["images"]) < 1e-5


def test_an_engine_that_is_there_is_built_again_only_by_force(copy: Path) -> None:
    build_it = ("--engine", RTX, "--target", "sm86")
    add(copy, *build_it)
    before = content(copy)
    with pytest.raises(UserError, match=r"holds engines/.* already; add --force"):
        add(copy, *build_it)
    for mark in (".2", ""):  # the other name, so that the old one stays until the new one is there
        add(copy, *build_it, "--force")
        assert {name.replace(f"{mark}.engine", ".engine").replace(f"{mark}.log", ".log") for name in content(copy)} == {
            *before
        }
        (engine,) = Bundle.open(copy).engines
        assert engine.file == f"engines/{RTX}-fp32-sm86-b1{mark}.engine"


def test_a_precision_beyond_the_bound_adds_nothing(copy: Path) -> None:
    before = content(copy)
    with pytest.raises(BoundError, match=r"bf16 costs an RMS error of .*, more than --max-error 1e-05") as raised:
        add(copy, "--engine", RTX, "--precision", "bf16", "--max-error", "1e-5")
    assert raised.value.status == 1
    assert content(copy) == before
    add(copy, "--precision", "bf16", "--max-error", "1")
    assert Bundle.open(copy).graph("sampler-bf16.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", RTX, "--target", "sm99"), "unknown target 'sm99'; tensorrt-rtx .* knows sm75, sm80"),
        (("--engine", RTX, "--target", ""), "unknown target ''"),
        (("--engine", RTX, "--batch", "8:4:16"), "batch 8:4:16 is out of order"),
        (("--engine", RTX, "--batch", "0"), "batch 0 is out of order"),
        (("--engine", RTX, "--batch", "9" * 26), "<= MAX <= 1,048,576"),
        (("--engine", RTX, "--batch", "1:4"), "size '1:4' is neither a number nor MIN:OPT:MAX"),
        (("--engine", "tensorrt"), "tensorrt is not installed: .*JetPack"),
        (("--engine", "openvino"), "invalid choice: 'openvino'"),
        (("--engine", RTX, "--precision", "int4"), "invalid choice: 'int4'"),
        (
            ("--engine", RTX, "--precision", "fp8", "--target", "sm86,sm89"),
            "sm86 does not compute in fp8, sm89 and later",
        ),
        (("--target", "sm86"), "--target sm86 is for an engine"),
        (("--precision", "fp16", "--target", ""), "--target '' is for an engine"),
        (("--precision", "fp16", "--batch", "256"), "--batch 256 is for an engine: .*--fit-batch"),
        (("--precision", "fp16", "--max-error", "-1"), "max-error is -1.0; it must be above 0"),
        (("--engine", RTX, "--max-error", "1"), "max-error bounds what a precision costs: name one"),
        ((), "nothing to add"),
    ],
)
def test_mistakes_are_named_and_change_nothing(made: Path, arguments: tuple[str, ...], message: str) -> None:
    before = content(made)
    with pytest.raises(UserError, match=message):
        add(made, *arguments)
    assert content(made) == before


def test_export_and_engine_in_one_command(tmp_path: Path) -> None:
    out = tmp_path / "b"
    dry = ("--model", "edm-digits", "--random-weights", "--nfe", "1", "--solver", "ddim")
    export(*dry, "--engine", RTX, "--precision", "fp16", "--out", str(out))
    bundle = Bundle.open(out)
    for name in bundle.manifest["files"]:
        bundle.file(name)
    assert [engine.precision for engine in bundle.engines] == ["fp16"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_bundle_outlives_an_engine_that_could_not_be_added(tmp_path: Path) -> None:
    dry = ("--model", "edm-digits", "--random-weights", "--nfe", "1", "--solver", "ddim", "--out", str(tmp_path / "b"))
    with pytest.raises(BoundError):
        export(*dry, "--precision", "bf16", "--max-error", "1e-9")
    bundle = Bundle.open(tmp_path / "b")
    assert "sampler-bf16.onnx" not in bundle.manifest["files"]
    assert {path.name for path in bundle.folder.iterdir()} == {"manifest.json", *bundle.manifest["files"]}


def test_a_device_needs_no_pytorch(copy: Path) -> None:
    """The verb runs where PyTorch cannot be imported."""
    program = (
        "import sys; sys.modules['torch'] = None; sys.argv[0] = 'x'; "
        "from edge_sampler.runtime.command_line import run_command; "
        "from edge_sampler.export.engine_command import main; run_command(main)"
    )
    command = [sys.executable, "-c", program, str(copy), "--precision", "fp16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "sampler-fp16.onnx" in json.loads((copy / "manifest.json").read_text())["files"]


def test_a_record_is_read_as_it_was_written() -> None:
    engine = Engine("engines/e.engine", RTX, "1.7", ("sm86", "sm89"), "fp16", Batch(1, 4, 16))
    assert Engine.read(json.loads(json.dumps(engine.record()))) == engine
    assert {engine.unfit("1.7", capability) for capability in (None, "sm86", "sm89")} == {None}
