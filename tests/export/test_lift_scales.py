"""Scales of evaluations, taken out of the products for TensorRT: another graph, the same images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.export.assemble import export_bundle
from edge_sampler.export.lift_scales import lift_scales
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantise import layers_of, operands, quantise
from edge_sampler.export.quantised import feed_to_fit
from edge_sampler.export.save import save_checked
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from tests.export.networks import convolved, euler, frames
from tests.export.test_quantise import number


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """Of convolutions, and of matrix products."""
    folder = tmp_path_factory.mktemp("lifted")
    export_bundle(convolved(3), euler([2.0, 0.5]), folder / "images")
    export_bundle(frames(), euler([0.9, 0.5]), folder / "frames")
    return {path.name: Bundle.open(path) for path in folder.iterdir()}


@pytest.mark.parametrize("what", ["images", "frames"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_lifted_scales_change_nothing(
    bundles: dict[str, Bundle], what: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the rounding of results, which int8 has for ONNX Runtime and TensorRT does not ask for: tried without."""
    bundle = bundles[what]
    monkeypatch.setitem(QUANTISED, precision, replace(QUANTISED[precision], results=False))
    graph, feed = ir.load(bundle.graph("sampler.onnx")), feed_to_fit(bundle, 512)
    names = [str(value.name) for layer in layers_of(graph.graph) for value in operands(layer, QUANTISED[precision])]
    with Session(bundle.graph("sampler.onnx"), names) as session:
        exact = session.run(feed)
    quantise(graph, precision, {name: float(np.abs(exact[name]).max()) for name in names})
    drop_unused(graph.graph)
    lifted = graph.clone()
    lift_scales(lifted)
    scales = {float(number(node.inputs[1])) for node in lifted.graph if node.op_type == "QuantizeLinear"}
    assert scales == {1.0}
    made = {}
    for name, model in {"before": graph, "after": lifted}.items():
        save_checked(model, tmp_path / f"{name}.onnx")
        with Session(tmp_path / f"{name}.onnx", optimise=False) as session:  # fused, they would round differently
            made[name] = session.run(feed)[bundle.output.name]
    changed = np.square(made["before"] - exact[bundle.output.name]).mean()
    assert changed > 0
    assert np.square(made["before"] - made["after"]).mean() < 0.1 * changed


def test_results_are_rounded_no_more(bundles: dict[str, Bundle]) -> None:
    graph = ir.load(bundles["images"].graph("sampler.onnx"))
    layers = layers_of(graph.graph)
    largest = {str(value.name): 1.0 for layer in layers for value in operands(layer, QUANTISED["int8"])}
    quantise(graph, "int8", largest)
    drop_unused(graph.graph)
    lift_scales(graph)
    quantised = [node for node in graph.graph if node.op_type == "QuantizeLinear"]
    taken = {node.inputs[0] for layer in layers for node in layer.nodes}
    assert quantised
    assert len(quantised) <= len(taken)
    for node in quantised:
        (restored,) = node.outputs[0].consumers()
        assert {reader.op_type for reader in restored.outputs[0].consumers()} <= {"Conv", "Gemm", "MatMul"}
