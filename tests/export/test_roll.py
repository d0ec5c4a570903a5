"""The rolled graph computes what the unrolled one computes, and holds the denoiser once."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.lower import drop_unused, lower_group_norm
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.precisions import PRECISIONS
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.sampler import feed_of
from tests.conftest import relative


def rolled(folder: Path) -> ir.Model:
    """As it is made of a bundle."""
    bundle = Bundle.open(folder)
    return roll(ir.load(bundle.graph("denoiser.onnx")), bundle.plan, bundle.dtype)


@pytest.mark.parametrize("which", ["made", "conditional"])
def test_a_loop_makes_the_same_images(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    bundle = Bundle.open(folder)
    feed = feed_of(bundle, range(3), {"class_labels": [0, 1, 9]} if which == "conditional" else {})
    save_checked(rolled(folder), tmp_path / "rolled.onnx")
    with Session(tmp_path / "rolled.onnx") as loop, Session(folder / "sampler.onnx") as unrolled:
        found, expected = loop.run(feed)["images"], unrolled.run(feed)["images"]
    if bundle.dtype == "uint8":
        assert np.abs(found.astype(int) - expected).max() <= 1
    else:
        assert relative(found, expected) < 1e-4


@pytest.mark.parametrize(
    ("solver", "nfe", "afs"), [("heun", 5, False), ("dpmpp-2m", 1, False), ("spndm", 6, False), ("deis", 3, True)]
)
def test_any_table_fits(
    solver: str, nfe: int, afs: bool, digits: Denoiser, digits_graph: ir.Model, tmp_path: Path
) -> None:
    plan = calibrate(digits, Settings(nfe, solver, fit_batch=16, heldout=8, afs=afs))
    assert plan.afs == afs
    lowered = digits_graph.clone()
    lower_group_norm(lowered)
    save_checked(unroll(lowered, plan), tmp_path / "unrolled.onnx")
    graph = roll(lowered, plan)
    assert sum(len(part) for part in graph.graphs()) < 1.1 * len(lowered.graph) + 5 * plan.nfe
    save_checked(graph, tmp_path / "rolled.onnx")
    noise = unit_noise(range(2), digits.spec.shape)
    with Session(tmp_path / "rolled.onnx") as loop, Session(tmp_path / "unrolled.onnx") as unrolled:
        assert relative(loop.run({"noise": noise})["images"], unrolled.run({"noise": noise})["images"]) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_body_is_lowered_as_well(made: Path, precision: str) -> None:
    model = rolled(made)
    lower_precision(model, precision)
    body = list(model.graphs())[1]
    for graph in model.graphs():
        drop_unused(graph)
    halves = [value for value in body.initializers.values() if value.dtype == PRECISIONS[precision].dtype]
    floats = [value for value in body.initializers.values() if value.dtype == ir.DataType.FLOAT]
    sizes = [sum(value.const_value.size for value in values if value.const_value) for values in (halves, floats)]
    assert sizes[0] > 50 * sizes[1]
