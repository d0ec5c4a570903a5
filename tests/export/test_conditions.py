"""Conditions, named axes and stages: graphs compute what PyTorch does, and nothing twice that could be once."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edge_sampler import models
from edge_sampler.export import unroll as unroll_module
from edge_sampler.export.assemble import export_graphs, simplify, write_graphs
from edge_sampler.export.network_graph import export_decoder, export_denoiser, export_encoder
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.take_apart import Parts, take_apart
from edge_sampler.export.unroll import unroll
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from tests.conftest import relative
from tests.export.networks import LENGTHS, MEMORY, euler, frames, head, policy

PLAN = euler([20.0, 5.0, 1.0, 0.2])
SHAPES: dict[str, Callable[..., ir.Model]] = {"unrolled": unroll, "loop": roll}
MODELS: dict[str, Callable[[], Denoiser]] = {
    "policy": policy,
    "policy, guided": lambda: conditioned(policy(), guidance=2.0),
    "policy, guided in two": lambda: conditioned(policy(), guidance=2.0, one_batch=False),
    "frames": frames,
    "frames, guided": lambda: conditioned(frames(), guidance=1.5),
    "frames, stages": lambda: frames(stages=True),
    "frames, stages, guided": lambda: conditioned(frames(stages=True), guidance=1.5),
}


@dataclass(frozen=True)
class Case:
    """A model and its graphs, as they go into a bundle."""

    model: Denoiser
    denoiser: ir.Model
    encoder: ir.Model | None
    decoder: ir.Model | None

    def draw(self, shape: str, plan: Plan) -> ir.Model:
        output = self.model.spec.output.name
        return SHAPES[shape](self.denoiser, plan, "float32", self.encoder, self.decoder, output)


def case_of(model: Denoiser) -> Case:
    graphs = [export_denoiser(model), export_encoder(model), export_decoder(model)]
    for graph in graphs:
        if graph is not None:
            simplify(graph)
    assert graphs[0] is not None
    return Case(model, graphs[0], graphs[1], graphs[2])


@cache
def case(name: str) -> Case:
    return case_of(MODELS[name]())


def drawn(model: Denoiser, length: int, tokens: int) -> dict[str, np.ndarray]:
    """Random values of what a caller gives, for two samples; of masks, at least the first entry."""
    rng, sizes = np.random.default_rng(length), {"length": length, "tokens": tokens}
    values: dict[str, np.ndarray] = {}
    for name, one in model.spec.called_with.conditions.items():
        shape = (2, *model.spec.inputs.sized(one.shape, sizes))
        kinds: dict[str, np.ndarray] = {
            "float32": rng.standard_normal(shape, np.float32),
            "int64": rng.integers(0, 11, shape),
            "bool": np.arange(shape[-1]) < rng.integers(1, shape[-1], (2, 1)) if one.dtype == "bool" else np.array(0),
        }
        values[name] = kinds[one.dtype]
    return values


@pytest.mark.parametrize("sizes", [(LENGTHS[0], MEMORY[2]), (37, MEMORY[0])])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", MODELS)
def test_graphs_make_what_pytorch_makes(name: str, shape: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    model = case(name).model
    told, axes = model.spec.called_with.check(drawn(model, *sizes), 2)
    noise = unit_noise([3, 4], model.spec.inputs.sized(sizes=axes))
    conditions = model.encode(told)
    with torch.inference_mode():
        state = sample(lambda x, s: model(x.float(), s, **conditions).double(), torch.from_numpy(noise).double(), PLAN)
        expected = model.decode(state.float())
    graph = case(name).draw(shape, PLAN)
    save_checked(graph, tmp_path / "s.onnx")
    with Session(tmp_path / "s.onnx") as session:
        found = session.run({"noise": noise, **told})
    assert list(found) == [model.spec.output.name]
    assert relative(found[model.spec.output.name], expected) < 1e-4
    wanted = {"noise": model.spec.inputs.shape}
    wanted |= {key: one.shape for key, one in model.spec.called_with.conditions.items()}
    written = [(value.name, tuple(map(str, value.shape or ()))) for value in graph.graph.inputs]
    assert written == [(key, ("batch", *map(str, of))) for key, of in wanted.items()]
    of = ("batch", *map(str, model.spec.output.shape))
    assert tuple(map(str, graph.graph.outputs[0].shape or ())) == of


def decided_by_conditions(model: ir.Model) -> int:
    """How many nodes, of the whole graph, depend on what the caller gives alone: not on noise or noise level."""
    noisy: set[ir.Value] = {value for value in model.graph.inputs if value.name == "noise"}
    told: set[ir.Value] = {value for value in model.graph.inputs if value.name != "noise"}
    count = 0
    for graph in model.graphs():
        noisy.update(value for name, value in graph.initializers.items() if "@" in name and not name.endswith("@all"))
        noisy.update(value for value in graph.inputs if value.name.startswith("@"))  # type: ignore[union-attr]
        for node in graph:
            if (any(value in noisy for value in node.inputs) and node.op_type != "Shape") or node.op_type == "Loop":
                noisy.update(node.outputs)
            elif any(value in told for value in node.inputs) or node.op_type == "Shape":
                told.update(node.outputs)
                count += 1
    return count


def not_hoisted(graph: ir.Graph, sigmas: Any) -> Parts:
    """``take_apart`` as it was: what conditions decide is computed in every evaluation."""
    parts = take_apart(graph, sigmas)
    again = {*parts.once, *parts.stamped}
    return replace(parts, once=(), stamped=tuple(node for node in graph if node in again))


@pytest.mark.parametrize("name", MODELS)
def test_what_conditions_decide_is_computed_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = [euler([20.0, 1.0][:nfe]) for nfe in (1, 2)]
    counts = {decided_by_conditions(case(name).draw(shape, plan)) for shape in SHAPES for plan in plans}
    assert len(counts) == 1
    assert counts.pop() > 0
    monkeypatch.setattr(unroll_module, "take_apart", not_hoisted)
    once, twice = (decided_by_conditions(case(name).draw("unrolled", plan)) for plan in plans)
    assert twice > once


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_stored_once(name: str) -> None:
    for shape in SHAPES:
        graphs = list(case(name).draw(shape, PLAN).graphs())
        stored = [
            value.const_value.numpy().tobytes()
            for graph in graphs
            for value in graph.initializers.values()
            if value.const_value is not None and value.const_value.nbytes >= 512 and "@" not in str(value.name)
        ]
        assert len(stored) == len(set(stored))


def test_film_is_a_constant_and_one_product() -> None:
    """Of the joined time and observation one layer is left, once; the noise level's part is a sum's other term."""
    count = Counter(node.op_type for node in case("policy").draw("unrolled", PLAN).graph)
    assert (count["MatMul"], count["Gemm"], count["Sin"], count["Concat"] - count["Expand"]) == (1, 0, 0, 0)


def flops(model: ir.Model, **sizes: int) -> int:
    """Of products of matrices, with these sizes for the axes that have names."""
    proto = ir.to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        known[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    products = [node for node in inferred.node if node.op_type in ("MatMul", "Gemm")]
    assert all(min(known[name]) > 0 for node in products for name in (*node.input[:2], *node.output))
    return sum(2 * known[node.input[0]][-1] * int(np.prod(known[node.output[0]])) for node in products)


def test_an_action_heads_keys_and_values_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 layers, 4 of them of 256 tokens' keys and values."""
    tokens, width, memory = 256, 16, 24
    made = case_of(head(width, memory, tokens))
    plans = {nfe: euler([20.0 / 2**k for k in range(nfe)]) for nfe in (1, 2, 8)}
    found = {nfe: flops(made.draw("unrolled", plan), batch=1, tokens=tokens) for nfe, plan in plans.items()}
    each = found[2] - found[1]
    once = 4 * 2 * (2 * tokens * memory * width)
    assert found[1] - each == once
    assert found[8] == once + 8 * each
    monkeypatch.setattr(unroll_module, "take_apart", not_hoisted)
    assert flops(made.draw("unrolled", plans[8]), batch=1, tokens=tokens) == 8 * (once + each)


def test_an_attentions_keys_are_transposed_at_once() -> None:
    """No arithmetic on shapes is left in an evaluation."""
    stamped = [node for node in case("frames").draw("unrolled", PLAN).graph if node.outputs[0].name.endswith("@0")]  # type: ignore[union-attr]
    assert stamped
    assert not {"Shape", "Slice", "Concat"} & {node.op_type for node in stamped}


COUNTS = {  # of the nodes: unrolled at NFE 1 and 3, and in the loop's two graphs
    "edm-digits": (223, 672, 255),
    "edm-fashion-cond": (365, 1088, 378),
    "edm-fashion-cond, guidance 2": (377, 1118, 390),
}
BEFORE = {  # there were conditions, with group norms in a form that ONNX Runtime computes wrongly on CUDA
    "edm-digits": (221, 662, 251),
    "edm-fashion-cond": (359, 1066, 370),
    "edm-fashion-cond, guidance 2": (371, 1096, 382),
}
OPS = {"Add": 42, "BatchNormalization": 63, "Concat": 12, "Conv": 102, "ConvTranspose": 6, "LayerNormalization": 72}
OPS |= {"MatMul": 18, "Mul": 94, "Reshape": 162, "Sigmoid": 63, "Softmax": 9, "Split": 9, "Sum": 2}
OPS["Transpose"] = 18  # edm-digits, NFE 3


@pytest.mark.parametrize("name", COUNTS)
def test_graphs_of_pictures_are_what_they_were(name: str, tmp_path: Path) -> None:
    model = models.load(name.split(",")[0])
    model = conditioned(model, guidance=2.0) if "guidance" in name else model
    graphs = export_graphs(model)
    plans = [euler([80.0, 5.0, 0.3][:nfe]) for nfe in (1, 3)]
    one, three = (unroll(graphs.denoiser, plan).graph for plan in plans)
    counts = (len(one), len(three), sum(map(len, roll(graphs.denoiser, plans[1]).graphs())))
    assert counts == COUNTS[name]
    assert all(now <= 1.03 * before for now, before in zip(counts, BEFORE[name], strict=True))
    if name == "edm-digits":
        assert write_graphs(graphs, plans[1], tmp_path).nodes == len(three)
        assert len(unroll(graphs.denoiser, plans[1]).graph) == len(three)  # one export serves many plans
        assert Counter(node.op_type for node in three) == OPS


@pytest.mark.parametrize("taken", ["state", "step", "add", "linear", "val_0", "sample", "x_O", "half_range"])
def test_conditions_have_any_name(taken: str, tmp_path: Path) -> None:
    class Told(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 5)

        def forward(self, x: torch.Tensor, t: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
            return self.layer(x * told[taken]) @ self.layer.weight + told[taken].sum(-1, keepdim=True)

    made = case_of(models.adapt(Told(), (4, 3), conditions={taken: Condition((4, 3))}))
    noise, value = np.random.default_rng(0).standard_normal((2, 2, 4, 3), np.float32)
    expected = sample(lambda x, s: made.model(x, s, **{taken: torch.from_numpy(value)}), torch.from_numpy(noise), PLAN)
    save_checked(made.denoiser, tmp_path / "denoiser.onnx")
    for shape in SHAPES:
        save_checked(made.draw(shape, PLAN), tmp_path / "s.onnx")
        with Session(tmp_path / "s.onnx") as session:
            assert relative(session.run({"noise": noise, taken: value})["samples"], expected) < 1e-4


@pytest.mark.parametrize("output", ["denoised", "state"])
def test_the_output_has_any_name(output: str, tmp_path: Path) -> None:
    class Halving(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.5 * x

    made = case_of(models.adapt(Halving(), (4,), output=output))
    noise = np.random.default_rng(0).standard_normal((2, 4), np.float32)
    expected = sample(made.model, torch.from_numpy(noise), PLAN)
    for shape in SHAPES:
        save_checked(made.draw(shape, PLAN), tmp_path / "s.onnx")
        with Session(tmp_path / "s.onnx") as session:
            assert relative(session.run({"noise": noise})[output], expected) < 1e-4


def test_a_condition_called_as_the_output_is_refused() -> None:
    conditions = {"samples": Condition((4,))}
    with pytest.raises(UserError, match="a condition is called 'samples', as the output is: give one another name"):
        models.adapt(torch.nn.Identity(), (4,), conditions=conditions)


def test_a_condition_called_as_the_answer_is_refused() -> None:
    class Told(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x

    model = models.adapt(Told(), (4,))
    spec = replace(model.spec, inputs=replace(model.spec.inputs, conditions={"denoised": Condition((4,))}))
    model.spec = spec
    with pytest.raises(UserError, match="Told takes a condition called 'denoised', as what it makes is"):
        export_denoiser(model)


def test_uint8_is_for_pictures() -> None:
    with pytest.raises(UserError, match="uint8 is for pictures"):
        unroll(case("policy").denoiser, PLAN, "uint8")
