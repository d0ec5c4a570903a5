"""Graphs that each release of TensorRT reads: its opset, its operators, and the same answers."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_sampler import models
from edge_sampler.export.assemble import export_graphs, write_graphs
from edge_sampler.export.lower import lower_opset
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.export.tensorrt_release import reads
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from tests.conftest import Golden, relative
from tests.export.test_unroll import fixed_plan

# What the zoo's graphs are made of: all are in docs/operators.md of onnx/onnx-tensorrt 10.15, and docs/Changelog.md
# names none of them as added after 10.0.
OPERATORS = {
    "Add", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose", "Cos", "DepthToSpace", "Div", "Equal",
    "Gather", "Gelu", "Gemm", "Greater", "IsNaN", "LayerNormalization", "MatMul", "Mul", "Not", "Pad", "ReduceMean",
    "ReduceSum", "Reshape", "Resize", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Sum",
    "Transpose", "Unsqueeze", "Where",
}  # fmt: skip


@pytest.mark.parametrize(
    ("flavour", "version", "expected"),
    [
        ("tensorrt", "10.3.0", (20, False, False)),
        ("tensorrt", "10.8.0.43", (20, False, False)),
        ("tensorrt", "10.9.0", (None, True, True)),
        ("tensorrt", "10.16.1", (None, True, True)),
        ("tensorrt", "11.4.1", (None, True, True)),
        ("tensorrt-rtx", "1.7.1.116", (None, True, True)),
    ],
)
def test_what_a_release_reads(flavour: str, version: str, expected: tuple[Any, ...]) -> None:
    found = reads(flavour, version)
    assert (found.opset, found.group_norm, found.bf16) == expected


def test_an_older_release_is_refused() -> None:
    with pytest.raises(UserError, match=r"TensorRT 8\.5\.2\.2 is older than all that are supported, from 10\.0 on"):
        reads("tensorrt", "8.5.2.2")


def reads_it(model: Denoiser, feed: dict[str, np.ndarray], folder: Path) -> None:
    """The graph for TensorRT 10.3 has its opset and operators, and makes what the bundle's graph makes."""
    write_graphs(export_graphs(model), fixed_plan(model, "ddim", 2), folder)
    graph, release = ir.load(folder / "sampler.onnx"), reads("tensorrt", "10.3.0")
    assert release.opset
    prepare_for_tensorrt(graph, None, release.group_norm)
    lower_opset(graph, release.opset)
    save_checked(graph, folder / "old.onnx")  # whose check knows each operator's attributes in that opset
    written = onnx.load(folder / "old.onnx")
    assert [(one.domain, one.version) for one in written.opset_import] == [("", 20)]
    assert {node.op_type for node in written.graph.node} <= OPERATORS
    made = []
    for name in ("sampler.onnx", "old.onnx"):
        with Session(folder / name) as session:
            made.append(session.run(feed)["images"])
    assert relative(made[1], made[0]) < 1e-5


@pytest.mark.parametrize("golden", ["edm-adm-cond", "edm-ddpmpp-cond", "edm-ncsnpp-uncond"], indirect=True)
def test_edms_architectures(golden: Golden, tmp_path: Path) -> None:
    told = {name: value.numpy() for name, value in golden.conditions.items()}
    reads_it(golden.model, {"noise": golden.arrays["latents"], **told}, tmp_path)


@pytest.mark.parametrize(("name", "guidance"), [("ddim-fashion", 1), ("flow-emoji", 3)])
def test_the_other_architectures(name: str, guidance: int, tmp_path: Path) -> None:
    model = conditioned(models.load(name), guidance=guidance)
    raw, _ = model.spec.called_with.check(model.draw_raw([0, 1]), 2)
    reads_it(model, {"noise": unit_noise([0, 1], model.spec.shape), **raw}, tmp_path)
