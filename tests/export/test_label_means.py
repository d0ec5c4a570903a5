"""A plan with a mean for each label: one graph picks each sample's own, as PyTorch's loop does, in any precision."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import simplify
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.precision import lower_precision
from edge_sampler.export.roll import roll
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.eager import make
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import compare
from edge_sampler.runtime.condition import CLASSES
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from edge_sampler.runtime.sampler import feed_of
from tests.calibration.toys import of_classes
from tests.conftest import export, relative
from tests.export.test_tensorrt_release import OPERATORS

LABELS = np.array([2, 0, -1, 1, 2])
NOISE = unit_noise(range(len(LABELS)), (1, 8, 8))


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return of_classes()


@pytest.fixture(scope="module")
def plan(model: Denoiser) -> Plan:
    return calibrate(model, Settings(2, schedule="edm", fit_batch=16, heldout=8, refine=1))


@pytest.fixture(scope="module")
def expected(model: Denoiser, plan: Plan) -> np.ndarray:
    labels = torch.from_numpy(LABELS)
    network = Network(model, {CLASSES: labels})
    made: np.ndarray = sample(network, torch.from_numpy(NOISE).double(), plan, network.labels).float().numpy()
    return made


@pytest.fixture(scope="module")
def graph(model: Denoiser) -> ir.Model:
    drawn = export_denoiser(model)
    simplify(drawn)
    return drawn


def run(graph: ir.Model, folder: Path) -> np.ndarray:
    save_checked(graph, folder / "s.onnx")
    with Session(folder / "s.onnx") as session:
        return session.run({"noise": NOISE, CLASSES: LABELS})["images"]


def test_each_sample_starts_from_the_mean_of_its_label(
    graph: ir.Model, plan: Plan, expected: np.ndarray, tmp_path: Path
) -> None:
    assert np.shape(plan.mean) == (4, 1, 8, 8)
    for shape in (unroll, roll):
        assert relative(run(shape(graph, plan), tmp_path), expected) < 1e-4, shape.__name__


def test_engines_are_asked_for_no_row_below_the_first(graph: ir.Model, plan: Plan) -> None:
    """TensorRT does not say that it counts from the end. Each of its releases reads the operators."""
    *others, gather = (node for node in unroll(graph, plan).graph if str(node.outputs[0].name).startswith("afs_"))
    assert {gather.op_type, *(node.op_type for node in others)} <= OPERATORS
    row = gather.inputs[1]
    assert row is not None
    chosen = row.producer()
    assert chosen is not None
    assert chosen.op_type == "Where"
    assert chosen.inputs[1] is not None
    assert chosen.inputs[1].const_value is not None
    assert chosen.inputs[1].const_value.numpy() == 3


@pytest.mark.parametrize("shape", [unroll, roll])
def test_means_are_not_rounded(
    shape: object, graph: ir.Model, plan: Plan, expected: np.ndarray, tmp_path: Path
) -> None:
    """They are the solver's, which computes in float32 whatever the network's precision."""
    lowered = shape(graph, plan)  # type: ignore[operator]
    lower_precision(lowered, "fp16")
    (means,) = (value for one in lowered.graphs() for name, value in one.initializers.items() if name == "afs_means")
    assert means.dtype == ir.DataType.FLOAT
    assert 0 < relative(run(lowered, tmp_path), expected) < 0.02
    engines = shape(graph, plan)  # type: ignore[operator]
    prepare_for_tensorrt(engines, None, True)
    assert relative(run(engines, tmp_path), expected) < 1e-4


def test_every_path_of_a_bundle_knows_the_label(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from tests.calibration.toys import of_classes as make\n")
    plan.save(tmp_path / "plan.json")
    given = ("--plan", str(tmp_path / "plan.json"), "--check", "2", "--out", str(tmp_path / "b"))
    export("--model", f"{tmp_path}/mine.py:make", *given)
    bundle = Bundle.open(tmp_path / "b")
    assert bundle.plan == plan
    found = compare(bundle)
    assert {(one.first, one.second) for one in found} > {("baseline loop", "PyTorch")}
    assert all(one.relative <= one.expected for one in found)
    feed = feed_of(bundle, range(3), {CLASSES: [1, -1, 0]})
    with Session(tmp_path / "b" / "sampler.onnx") as session:
        expected = session.run(feed)["images"]
    assert relative(make(bundle, f"{tmp_path}/mine.py:make")(feed), expected) < 1e-4
