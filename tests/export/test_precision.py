"""Mixed precision: what is lowered, what is not, and what it costs."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.extend import precision_error
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser, Preconditioned, per_sample
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import FLOAT_IMAGES
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample
from edge_sampler.runtime.sampler import feed_of
from tests.export.networks import Convolved

WEIGHTED = ("Conv", "Gemm", "MatMul")


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def lowered(folder: Path, precision: str) -> ir.Model:
    """The bundle's graph in that precision, as a reader of the file sees it, types inferred."""
    model = ir.load(folder / "sampler.onnx")
    lower_precision(model, precision)
    drop_unused(model.graph)
    ShapeInferencePass()(model)
    return model


def float_inputs(node: ir.Node) -> Iterator[ir.DataType]:
    floats = {ir.DataType.FLOAT, *(one.dtype for one in PRECISIONS.values())}
    yield from (value.dtype for value in node.inputs if value is not None and value.dtype in floats)


@pytest.mark.parametrize("which", ["made", "conditional"])
def test_the_network_is_lowered_and_nothing_around_it(
    which: str, precision: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    model = lowered(folder, precision)
    nfe = Bundle.open(folder).plan.nfe
    for node in model.graph:
        if node.op_type in WEIGHTED:
            assert set(float_inputs(node)) == {PRECISIONS[precision].dtype}, node
        if node.op_type == "Softmax":
            assert set(float_inputs(node)) == {ir.DataType.FLOAT}, node
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    solver = [name for name in values if name.startswith(("x_", "denoised_", FLOAT_IMAGES)) and "cast" not in name]
    assert len(solver) >= 3 * nfe
    for name in (*solver, "images"):
        producer = values[name].producer()
        assert producer is not None
        if producer.op_type in ("Mul", "Sum", "Add"):
            assert set(float_inputs(producer)) == {ir.DataType.FLOAT}, name


def test_inputs_and_outputs_keep_their_types(conditional: Path, precision: str) -> None:
    before, after = ir.load(conditional / "sampler.onnx").graph, lowered(conditional, precision).graph
    for old, new in zip((*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True):
        assert (old.name, old.dtype, old.shape) == (new.name, new.dtype, new.shape)


def test_weights_are_halved_and_stored_once(made: Path, precision: str, tmp_path: Path) -> None:
    model = ir.load(made / "sampler.onnx")
    lower_precision(model, precision)
    drop_unused(model.graph)
    assert save_checked(model, tmp_path / "low.onnx") < 0.6 * (made / "sampler.onnx").stat().st_size


def test_the_float16_graph_errs_as_predicted(made: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(made)
    model = ir.load(made / "sampler.onnx")
    lower_precision(model, "fp16")
    save_checked(model, tmp_path / "low.onnx")
    feed = feed_of(bundle, range(64), {})
    with Session(tmp_path / "low.onnx") as low, Session(made / "sampler.onnx") as full:
        found = float(np.sqrt(np.mean((low.run(feed)["images"] - full.run(feed)["images"]) ** 2)))
    predicted = precision_error(bundle, "fp16")["rms_error"]
    assert 0.3 < found / predicted < 1.5  # ONNX Runtime keeps float32 between some nodes, so it errs less


def test_the_predicted_error_is_that_of_pytorch(made: Path, digits: Denoiser, precision: str) -> None:
    """PyTorch rounds after every operation, as the prediction does."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    bundle = Bundle.open(made)
    noise = torch.from_numpy(unit_noise(range(64), bundle.inputs.sized()))
    low = copy.deepcopy(digits)
    assert isinstance(low, Preconditioned)
    low.model.to(dtype)

    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        c = low.preconditioning.coefficients(torch.tensor([sigma], dtype=torch.float32))
        network = low.model((per_sample(c.c_in, x) * x).to(dtype), c.c_noise.to(dtype)).float()
        return per_sample(c.c_skip, x) * x + per_sample(c.c_out, x) * network

    with torch.inference_mode():
        difference = sample(denoise, noise, bundle.plan) - sample(digits, noise, bundle.plan)
    assert 0.5 < precision_error(bundle, precision)["rms_error"] / float(difference.square().mean().sqrt()) < 2


def test_weights_beyond_float16_are_refused(made: Path) -> None:
    model = ir.load(made / "sampler.onnx")
    weight = next(value for name, value in model.graph.initializers.items() if name.endswith("conv0.weight"))
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() + np.float32(1e5), name=weight.name)
    lower_precision(model.clone(), "bf16")
    with pytest.raises(UserError, match=f"{weight.name} holds 1e\\+05, more than fp16's 65504: use bf16"):
        lower_precision(model, "fp16")


def test_a_flows_first_level_is_not_taken_for_a_mask() -> None:
    """Its noise is multiplied by 1e7, in float32, far beyond float16's range."""
    model = models.adapt(Convolved(1), (1, 8, 8), "FlowPrecond", num_train_timesteps=1)
    plan = calibrate(model, Settings(2, "ddim"))
    graph = unroll(export_graphs(model).denoiser, plan)
    expected = {value.const_value.numpy().item() for value in weights_of(graph, "noise")}
    assert max(expected) == pytest.approx(1e7)
    lower_precision(graph, "fp16")
    assert {value.const_value.numpy().item() for value in weights_of(graph, "noise")} == expected


def weights_of(graph: ir.Model, name: str) -> list[Any]:
    """The initializers that a graph's input is multiplied by."""
    given = next(value for value in graph.graph.inputs if value.name == name)
    return [value for node, _ in given.uses() for value in node.inputs if value is not None and value.is_initializer()]
