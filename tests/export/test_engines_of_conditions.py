"""Precisions and engines of graphs with conditions, axes with names and stages."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edge_sampler import models
from edge_sampler.export.build_engine import build, engine_for
from edge_sampler.export.lower import drop_unused, lower_group_norm
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import fix_batch
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.errors import UserError
from tests.conftest import relative
from tests.export.networks import LENGTHS, MEMORY, euler
from tests.export.test_conditions import PLAN, SHAPES, case, case_of, drawn

AXES = {"length": LENGTHS, "tokens": MEMORY}


def lowered(name: str, shape: str, precision: str, path: Path) -> ir.Model:
    save_checked(case(name).draw(shape, PLAN), path)
    model = ir.load(path)
    lower_precision(model, precision)
    for graph in model.graphs():
        drop_unused(graph)
    return model


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_decoder_behind_the_solvers_sums_stay_float32(shape: str, precision: str, tmp_path: Path) -> None:
    model = lowered("frames, stages", shape, precision, tmp_path / "full.onnx")
    save_checked(model, tmp_path / "low.onnx")
    nodes = [node for graph in model.graphs() for node in graph]
    products = [node for node in nodes if node.op_type in ("MatMul", "Gemm")]
    assert products
    halves = {str(value.name) for graph in model.graphs() for value in graph.initializers.values()}
    assert any(name.startswith("decoder.") and name.endswith(precision) for name in halves)
    assert any(name.startswith("encoder.") and name.endswith(precision) for name in halves)
    solver = [node for node in nodes if str(node.outputs[0].name).startswith(("x_", "sample", "@x", "@state"))]
    assert solver
    casts = {value for node in nodes if node.op_type == "Cast" for value in node.outputs}
    to_float = {node.outputs[0] for node in nodes if node.op_type == "Cast" and node.attributes["to"].as_int() == 1}
    for node in solver:
        if node.op_type in ("Mul", "Sum", "Add", "ReduceSum"):
            assert not {value for value in node.inputs if value in casts} - to_float, node


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["policy, guided", "frames, stages"])
def test_float16_computes_nearly_the_same(name: str, shape: str, tmp_path: Path) -> None:
    save_checked(lowered(name, shape, "fp16", tmp_path / "full.onnx"), tmp_path / "low.onnx")
    model = case(name).model
    told, sizes = model.spec.called_with.check(drawn(model, 16, 6), 2)
    noise = np.random.default_rng(0).standard_normal((2, *model.spec.inputs.sized(sizes=sizes)), np.float32)
    with Session(tmp_path / "full.onnx") as full, Session(tmp_path / "low.onnx") as low:
        exact, found = (next(iter(s.run({"noise": noise, **told}).values())) for s in (full, low))
    assert 0 < relative(found, exact) < 5e-3


class Masked(nn.Module):
    """Scores [n, T, T], of which a mask hides columns by ``fill``, a number or a matrix."""

    def __init__(self, fill: float | torch.Tensor) -> None:
        super().__init__()
        self.first, self.last, self.fill = nn.Linear(8, 16), nn.Linear(16, 8), fill

    def forward(self, x: torch.Tensor, t: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        scores = h @ h.transpose(1, 2) / 4
        if isinstance(self.fill, float):
            scores = scores.masked_fill(~mask[:, None, :], self.fill)
        else:
            scores = scores + self.fill
        return self.last(scores.softmax(-1) @ h)


def masked(fill: float | torch.Tensor) -> Denoiser:
    torch.manual_seed(0)
    return models.adapt(Masked(fill), (12, 8), conditions={"mask": Condition((12,), "bool")})


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("fill", [float("-inf"), torch.finfo(torch.float32).min, -1e4])
def test_masks_fit_into_every_precision(fill: float, precision: str, tmp_path: Path) -> None:
    graph = unroll(case_of(masked(fill)).denoiser, euler([2.0, 0.5]))
    save_checked(graph, tmp_path / "full.onnx")
    lower_precision(graph, precision)
    save_checked(graph, tmp_path / "low.onnx")
    noise = np.random.default_rng(0).standard_normal((2, 12, 8), np.float32)
    feed = {"noise": noise, "mask": np.arange(12) < np.array([[9], [12]])}
    if precision == "fp16":  # ONNX Runtime's CPU kernels have no bfloat16
        with Session(tmp_path / "full.onnx") as full, Session(tmp_path / "low.onnx") as low:
            assert relative(low.run(feed)["images"], full.run(feed)["images"]) < 5e-3


def test_matrices_beyond_float16_are_refused() -> None:
    graph = unroll(case_of(masked(torch.full((12, 12), 1e5))).denoiser, euler([2.0]))
    lower_precision(graph.clone(), "bf16")
    with pytest.raises(UserError, match=r"holds 1e\+05, more than fp16's 65504"):
        lower_precision(graph, "fp16")


@pytest.mark.parametrize("shape", [("length", 6), (6, "length"), ("length", "width")])
def test_group_norms_of_any_size(shape: tuple[int | str, ...], tmp_path: Path) -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8)
            self.last = nn.Conv2d(8, 1, 1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(self.first(x)))

    sizes = {name: (2, 6, 9) for name in shape if isinstance(name, str)}
    model = models.adapt(Normed(), (1, *shape), axes=sizes)
    graph = export_denoiser(model)
    lower_group_norm(graph)
    assert "GroupNormalization" not in {node.op_type for node in graph.graph}
    save_checked(graph, tmp_path / "d.onnx")
    x = torch.randn(3, 1, *(7 if isinstance(size, str) else size for size in shape))
    with Session(tmp_path / "d.onnx") as session:
        found = session.run({"x": x.numpy(), "sigma": np.array(0.7, np.float32)})["denoised"]
    assert relative(found, model(x, 0.7)) < 1e-5
    fix_batch(graph, 3)
    assert tuple(map(str, graph.graph.inputs[0].shape or ())) == ("3", "1", *map(str, shape))


@pytest.mark.parametrize("batch", ["1:2:4", "2"])
@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["policy", "frames, stages"])
def test_tensorrt_builds_them(name: str, shape: str, precision: str, batch: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    graph = case(name).draw(shape, euler([2.0, 0.5]))
    save_checked(graph, tmp_path / "s.onnx")
    graph = ir.load(tmp_path / "s.onnx")
    if precision != "fp32":
        lower_precision(graph, precision)
    engine = replace(engine_for("tensorrt-rtx", "sm86", precision, Batch.parse(batch), shape == "loop"), axes=AXES)
    assert len(bytes(build(graph, engine).engine_bytes)) > 1000


def test_the_sizes_of_axes_are_recorded() -> None:
    engine = Engine("engines/e.engine", "tensorrt", "11.0", ("sm86",), "fp32", Batch(1, 1, 1), axes=AXES)
    assert Engine.read(json.loads(json.dumps(engine.record()))) == engine
    old = {key: value for key, value in engine.record().items() if key != "axes"}
    assert Engine.read(old).axes == {}
    assert len({engine, Engine.read(old)}) == 2
