"""The evaluations of a quantised sampler, each as a denoiser of its own, for a fit with the rounding in the loop.

A sampler's graph has the noise levels built in. Here they stay an input, so that a fit can move them; the rest is what
``unroll`` stamps, rounded by the same scales.
"""

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.lower import drop_unused, lower_opset
from edge_sampler.export.precisions.base import Quantised
from edge_sampler.export.quantise import OPSET, Layer, evaluation_of, layers_of, quantise_layer, scale_of
from edge_sampler.export.save import save_checked
from edge_sampler.export.split import split_joined
from edge_sampler.export.unroll import add_shifts_to_biases
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.onnx_denoiser import OnnxDenoiser
from edge_sampler.models.onnx_graph import OnnxGraph
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError


def quantised_evaluations(
    bundle: Bundle, model: Denoiser, eight: Quantised, largest: Mapping[str, float], folder: Path
) -> list[Denoiser]:
    """Denoisers that compute what the evaluations of the bundle's sampler do with these scales; in fp32 where eight
    bits are not, in ``int8+fp16`` too.

    Args:
        model: the one that the bundle was made of.
        largest: of each value to be quantised, by its name in sampler.onnx, what the largest number is to stand for.
        folder: for their graphs, which are read as long as the denoisers live.
    """
    layers = layers_of(ir.load(bundle.graph("sampler.onnx")).graph)
    denoiser, made = ir.load(bundle.graph("denoiser.onnx")), list[Denoiser]()
    ShapeInferencePass()(denoiser)
    graph = denoiser.graph
    split_joined(graph)
    add_shifts_to_biases(graph)
    for value in (value for node in graph for value in node.outputs):
        if value not in graph.outputs:
            value.name = f"{value.name}@0"
    for layer in layers:
        quantise_layer(graph, first_of(layer, graph), eight, largest)
    lower_opset(denoiser, OPSET)
    drop_unused(graph)
    for evaluation in range(bundle.plan.nfe):
        for name, number in largest.items():
            if evaluation_of(name) == evaluation:
                scale = graph.initializers[f"{name.rpartition('@')[0]}@0_scale"]
                scale.const_value = ir.tensor(scale_of(number, eight), name=scale.name)
        path = folder / f"evaluation-{evaluation}.onnx"
        save_checked(denoiser, path)
        made.append(OnnxDenoiser(OnnxGraph(path), model.spec).to(model.device).eval())
    return made


def first_of(layer: Layer, denoiser: ir.Graph) -> Layer:
    """The layer in a denoiser's graph, whose values are called as those of a sampler's first evaluation."""
    values = {value.name: value for node in denoiser for value in node.outputs}
    names = [node.outputs[0].name for node in layer.nodes if evaluation_of(node.outputs[0].name) == 0]
    nodes = tuple(node for name in names if name in values and (node := values[name].producer()))
    if len(nodes) != len(names) or layer.name not in denoiser.initializers:
        raise UserError(f"denoiser.onnx has no {layer.name} as sampler.onnx has it: export the bundle again")
    return Layer(denoiser.initializers[layer.name], layer.axis, nodes)
