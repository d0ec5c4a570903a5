"""Eight bits: what is quantised, with which scales, and what is made of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from edge_sampler import runtime
from edge_sampler.export.assemble import export_bundle
from edge_sampler.export.engine_command import main
from edge_sampler.export.image_error import image_error
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantise import (
    Layer,
    evaluation_of,
    layers_of,
    operands,
    quantise,
    rounded,
)
from edge_sampler.export.quantised import effects_of, feed_to_fit
from edge_sampler.export.save import save_checked
from edge_sampler.models.own import adapt
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.sampler import feed_of
from tests.conftest import run_main
from tests.export.networks import convolved, euler, frames

INT8 = QUANTISED["int8"]
NFE = 4  # of the bundle ``made``


def add(folder: Path, *arguments: str) -> None:
    run_main(main, str(folder), *arguments)


def nodes_of(path: Path, op_type: str) -> list[ir.Node]:
    return [node for node in ir.load(path).graph if node.op_type == op_type]


def number(value: ir.Value | None) -> np.ndarray:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


@pytest.mark.parametrize("precision", QUANTISED)
def test_inner_layers_are_of_eight_bits_and_nothing_else_is(quantised: Path, precision: str) -> None:
    path = quantised / f"sampler-{precision}.onnx"
    eight, layers = QUANTISED[precision], layers_of(ir.load(quantised / "sampler.onnx").graph)
    assert len(layers) == 30  # all of the U-Net's but the first, the last, and resampling; attention is one layer
    assert not any("8x8_conv" in layer.name or "aux_conv" in layer.name for layer in layers)
    in_float = 0
    for node in nodes_of(path, "Conv"):
        producers = [value.producer() if value is not None else None for value in node.inputs[:2]]
        restored = [one is not None and one.op_type == "DequantizeLinear" for one in producers]
        assert restored[0] == restored[1]
        in_float += not restored[0]
    assert in_float == NFE * 4  # the first, the last, two that resample
    for node in nodes_of(path, "DequantizeLinear"):
        stored = node.inputs[0]
        assert stored is not None
        if stored.is_initializer():
            assert stored.dtype == eight.dtype
            continue
        source = stored.producer()
        assert source is not None
        (before,) = (value.producer() for value in source.inputs[:1] if value is not None)
        assert before is not None
        readers = {reader.op_type for reader in node.outputs[0].consumers()}
        assert readers == {"Conv"} or (eight.results and before.op_type == "Conv")
        assert number(source.inputs[2]) == 0 == number(node.inputs[2])
        assert number(source.inputs[1]) == number(node.inputs[1])


@pytest.mark.parametrize("precision", QUANTISED)
def test_a_weight_is_stored_once_with_a_scale_for_each_channel(quantised: Path, precision: str) -> None:
    exact = ir.load(quantised / "sampler.onnx").graph
    path = quantised / f"sampler-{precision}.onnx"
    weights = [
        node for node in nodes_of(path, "DequantizeLinear") if node.inputs[0] and node.inputs[0].is_initializer()
    ]
    layers = layers_of(exact)
    assert len(weights) == len(layers)
    for layer, node in zip(layers, sorted(weights, key=lambda n: order(n, layers)), strict=True):
        stored, scale = number(node.inputs[0]).astype(np.float32), number(node.inputs[1]).astype(np.float32)
        original = number(layer.weight)
        assert len(node.outputs[0].consumers()) == NFE
        assert node.attributes["axis"].as_int() == 0
        assert scale.shape == (len(original),)
        error = np.abs(stored * scale.reshape(-1, 1, 1, 1) - original).max((1, 2, 3)) / np.abs(original).max((1, 2, 3))
        assert error.max() < {"int8": 0.41, "int8+fp16": 0.41, "fp8": 0.04}[precision]  # int8 may clip to 0.6 of it
        rms = np.square(stored * scale.reshape(-1, 1, 1, 1) - original).mean() / np.square(original).mean()
        assert rms < 0.04**2
    assert path.stat().st_size < 0.4 * (quantised / "sampler.onnx").stat().st_size


def order(node: ir.Node, layers: list[Layer]) -> int:
    return [f"{layer.name}_restored" for layer in layers].index(str(node.outputs[0].name))


def test_channels_of_other_sizes_get_scales_of_their_own() -> None:
    """Along the axis asked for: along another, the small ones would be lost."""
    weight = np.random.default_rng(0).standard_normal((3, 4, 2, 2)).astype(np.float32)
    for axis in (0, 1):
        sizes = (10.0 ** np.arange(weight.shape[axis])).reshape([-1 if k == axis else 1 for k in range(4)])
        scaled = (weight * sizes).astype(np.float32)
        for eight in (INT8, QUANTISED["fp8"]):
            numbers, scales = rounded(scaled, axis, eight)
            restored = numbers.astype(np.float32) * scales.reshape(sizes.shape)
            others = tuple(k for k in range(4) if k != axis)
            relative = np.sqrt(np.square(restored - scaled).mean(others) / np.square(scaled).mean(others))
            assert (relative < (0.01 if eight is INT8 else 0.05)).all()


def test_each_evaluation_has_scales_of_its_own(quantised: Path, copy: Path) -> None:
    def scales(path: Path) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {}
        for node in nodes_of(path, "QuantizeLinear"):
            name = str(node.inputs[0] and node.inputs[0].name)
            assert evaluation_of(name) is not None
            found.setdefault(name.rpartition("@")[0], set()).add(float(number(node.inputs[1])))
        return found

    add(copy, "--precision", "int8", "--one-scale")
    each, one = scales(quantised / "sampler-int8.onnx"), scales(copy / "sampler-int8.onnx")
    assert each.keys() == one.keys()
    assert all(len(found) == 1 for found in one.values())
    assert np.mean([len(found) == NFE for found in each.values()]) > 0.8
    assert json.loads((copy / "manifest.json").read_text())["precisions"]["int8"]["one_scale"] is True
    with pytest.raises(UserError, match=r"holds sampler-int8\.onnx already, with one scale for all evaluations"):
        add(copy, "--precision", "int8")


def test_onnx_runtime_fuses_every_layer(quantised: Path, tmp_path: Path) -> None:
    """As a user's own session does, without an option."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(quantised / "sampler-int8.onnx"), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert found.count("QLinearConv") == 30 * NFE


@pytest.mark.parametrize("precision", QUANTISED)
def test_images_are_nearly_the_same_and_the_manifest_says_how_nearly(quantised: Path, precision: str) -> None:
    bundle = Bundle.open(quantised)
    recorded = bundle.manifest["precisions"][precision]
    assert 0.001 < recorded["rms_error"] < 0.06
    assert recorded["layers"] == 30
    assert recorded["kept"] == {}
    differences = compare(bundle, backends=["onnxrt"], precision=precision)
    assert within(differences, None)
    assert not within(differences, 1e-4)


def test_fused_kernels_compute_what_the_nodes_say(quantised: Path) -> None:
    bundle = Bundle.open(quantised)
    path = quantised / "sampler-int8.onnx"
    found, said = (image_error(bundle, path, optimise)["rms_error"] for optimise in (True, False))
    assert 0.7 < found / said < 1.4
    node = nodes_of(path, "Conv")[1]  # the first of eight bits; further on, rounding the other way adds up
    restored = f"{node.outputs[0].name}_restored"
    scale = number(next(n for n in nodes_of(path, "DequantizeLinear") if n.outputs[0].name == restored).inputs[1])
    feed = feed_of(bundle, range(16), {})
    with Session(path, [restored]) as fused, Session(path, [restored], optimise=False) as plain:
        steps = np.rint((fused.run(feed)[restored] - plain.run(feed)[restored]) / scale)
    assert np.abs(steps).max() <= 1
    assert (steps != 0).mean() < 0.002


@pytest.mark.parametrize("size", [0.0, 1e-4, 1.0])
def test_a_bias_fits_32_bits(size: float, tmp_path: Path) -> None:
    """Beside which what a layer is given is next to nothing, and half of its weights are nothing."""
    torch.manual_seed(0)
    first, inner, last = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 8), (8, 8), (8, 1)))
    inner.weight.data[:4] = 0

    class Faint(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList((first, inner, last))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(last(torch.nn.functional.silu(inner(size * torch.nn.functional.silu(first(x))))))

    export_bundle(adapt(Faint(), (1, 8, 8), "EDMPrecond"), euler([2.0, 0.5]), tmp_path / "b")
    add(tmp_path / "b", "--precision", "int8")
    bundle = Bundle.open(tmp_path / "b")
    path = bundle.folder / "sampler-int8.onnx"
    found, said = (image_error(bundle, path, optimise)["rms_error"] for optimise in (True, False))
    assert 0.7 < found / said < 1.4


def test_where_kernels_would_overflow_eight_bits_are_computed_in_float32(
    quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with runtime.load(quantised, "onnxrt", "int8") as fast:
        expected = fast.sample(range(8))
    monkeypatch.setattr("edge_sampler.runtime.backends.onnxrt.saturates", lambda: True)
    with runtime.load(quantised, "onnxrt", "int8") as safe, runtime.load(quantised, "onnxrt") as exact:
        found, wanted = safe.sample(range(8)), exact.sample(range(8))
    assert np.abs(found - expected).max() > 0
    errors = [np.median(np.square(made - wanted).mean((1, 2, 3))) for made in (found, expected)]
    assert 0.25 < errors[0] / errors[1] < 4  # they round the same values, now and then to another side


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network with twelve layers for eight bits, of which three may stay. Do not change it."""
    folder = tmp_path_factory.mktemp("twelve") / "b"
    export_bundle(convolved(12), euler([2.0, 0.5]), folder)
    return folder


def test_layers_stay_until_the_bound_holds(twelve: Path, tmp_path: Path) -> None:
    errors = list[float]()
    for name, bound in (("all", []), ("some", ["--max-error"])):
        folder = Path(shutil.copytree(twelve, tmp_path / name))
        add(folder, "--precision", "int8", *bound, *(str(0.95 * error) for error in errors))
        errors.append(Bundle.open(folder).manifest["precisions"]["int8"]["rms_error"])
    recorded = Bundle.open(folder).manifest["precisions"]["int8"]
    kept = recorded["kept"]
    assert errors[1] <= 0.95 * errors[0]
    assert 1 <= len(kept) <= 3
    assert list(kept.values()) == sorted(kept.values(), reverse=True)
    stored = {layer.name for layer in layers_of(ir.load(folder / "sampler.onnx").graph)}
    graph = ir.load(folder / "sampler-int8.onnx").graph
    assert {name for name in stored if name in graph.initializers} == set(kept)


def test_a_bound_that_no_choice_of_layers_reaches_adds_nothing(
    twelve: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(twelve, tmp_path / "b"))
    names = [layer.name for layer in layers_of(ir.load(folder / "sampler.onnx").graph)]
    monkeypatch.setattr("edge_sampler.export.quantised.effects_of", lambda *arguments: dict.fromkeys(names, 0.0))
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises(BoundError, match=r"even without the worst 3 of 12 layers, more than --max-error 1e-06"):
        add(folder, "--precision", "int8", "--max-error", "1e-6")
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_effects_are_those_of_one_layer_alone(twelve: Path, tmp_path: Path) -> None:
    bundle, graph = Bundle.open(twelve), ir.load(twelve / "sampler.onnx")
    layers, feed = layers_of(graph.graph), feed_to_fit(bundle, 1024)
    names = [str(value.name) for layer in layers for value in operands(layer, INT8)]
    with Session(twelve / "sampler.onnx", names) as session:
        largest = {name: float(np.abs(array).max()) for name, array in session.run(feed).items() if name in names}
    effects = effects_of(bundle, twelve / "sampler.onnx", "int8", largest)
    assert effects.keys() == {layer.name for layer in layers}
    worst = next(iter(effects))
    quantise(graph, "int8", largest, [layer.name for layer in layers if layer.name != worst])
    drop_unused(graph.graph)
    save_checked(graph, tmp_path / "one.onnx")
    with Session(tmp_path / "one.onnx") as one, Session(twelve / "sampler.onnx") as exact:
        difference = (one.run(feed)["images"] - exact.run(feed)["images"]).reshape(len(feed["noise"]), -1)
    assert effects[worst] == pytest.approx(np.sqrt(np.square(difference).mean(1)).mean(), rel=0.1)


def test_matrix_products_have_scales_for_each_column(tmp_path: Path) -> None:
    """A transformer with conditions, axes of any size, an encoder and a decoder; which stay as they are."""
    model = frames(stages=True)
    export_bundle(model, euler([0.9, 0.5]), tmp_path / "b")
    add(tmp_path / "b", "--precision", "int8")
    bundle = Bundle.open(tmp_path / "b")
    weights = [
        n
        for n in nodes_of(tmp_path / "b" / "sampler-int8.onnx", "DequantizeLinear")
        if n.inputs[0] and n.inputs[0].is_initializer()
    ]
    assert len(weights) == bundle.manifest["precisions"]["int8"]["layers"] >= 8
    assert not any("encoder" in str(node.outputs[0].name) or "decoder" in str(node.outputs[0].name) for node in weights)
    for node in weights:
        axis, (reader, *_) = node.attributes["axis"].as_int(), node.outputs[0].consumers()
        assert axis == (0 if "transB" in reader.attributes and reader.attributes["transB"].as_int() else 1)
        assert number(node.inputs[1]).shape == (number(node.inputs[0]).shape[axis],)
    assert within(compare(bundle, backends=["onnxrt"], precision="int8"), None)


def test_what_a_network_computes_in_16_bits_stays(tmp_path: Path) -> None:
    class Half(torch.nn.Module):
        def __init__(self, half: int) -> None:
            super().__init__()
            sizes = ((8, 16), (16, 16), (16, 16), (16, 8))
            self.layers = torch.nn.ModuleList(torch.nn.Linear(*size) for size in sizes)
            self.layers[1 : half + 1].half()

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x.to(layer.weight.dtype)).tanh()  # type: ignore[arg-type]
            return x.float()

    for half in (1, 2):
        export_bundle(adapt(Half(half), (8,), "EDMPrecond"), euler([2.0, 0.5]), tmp_path / f"{half}")
    add(tmp_path / "1", "--precision", "int8")
    told = Bundle.open(tmp_path / "1").manifest["precisions"]["int8"]
    assert told["layers"] == 1
    assert told["rms_error"] < 1e-3
    with pytest.raises(UserError, match="has no layers between its first and its last one that 8 bits are for"):
        add(tmp_path / "2", "--precision", "int8")


def test_a_conditional_bundle_of_uint8_images_is_quantised(conditional: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(conditional, tmp_path / "c"))
    add(folder, "--precision", "int8")
    assert within(compare(Bundle.open(folder), backends=["onnxrt"], precision="int8"), None)


def test_mistakes_are_named(quantised: Path, copy: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("--precision", "fp16", "--one-scale"), "one-scale is for fp8, int8, int8"),
        (("--engine", "tensorrt-rtx", "--precision", "int8", "--loop"), "--loop has one copy of the network"),
    ):
        with pytest.raises(UserError, match=message):
            add(copy, *arguments)
    graph = ir.load(quantised / "sampler-int8.onnx")
    with pytest.raises(UserError, match="quantised already"):
        quantise(graph, "int8", {})
    graph = ir.load(quantised / "sampler.onnx")
    layer = layers_of(graph.graph)[3]
    array = number(layer.weight).copy()
    array[0] = np.nan
    layer.weight.const_value = ir.tensor(array, name=layer.name)
    largest = {str(value.name): 1.0 for one in layers_of(graph.graph) for value in operands(one, INT8)}
    with pytest.raises(UserError, match=f"{layer.name} holds NaN or infinity"):
        quantise(graph, "int8", largest)
