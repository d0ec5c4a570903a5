"""The unrolled graph computes what PyTorch computes, and is as small as it should be."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.candidates import grid_of, noises_of, scheme_of
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import ALL_SOLVERS, find
from edge_sampler.calibration.solvers.base import Scheme, Solver, base_step
from edge_sampler.calibration.trace import corrected_by, trace
from edge_sampler.export.assemble import Graphs, export_graphs, write_graphs
from edge_sampler.export.lower import drop_unused, keep_batch_in_reshapes, lower_group_norm
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.save import Beside, save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.plan import Plan, sample
from tests.bundles import TINY
from tests.conftest import Golden, relative
from tests.export.networks import convolved, of_classes

NFES = (1, 2, 5, 10)


def fixed_plan(model: Denoiser, solver: str, nfe: int) -> Plan:
    return calibrate(model, Settings(nfe, solver))


@pytest.fixture(scope="module")
def digits_graphs(digits: Denoiser) -> Graphs:
    """As they go into a bundle."""
    return export_graphs(digits)


@pytest.fixture(scope="module")
def lowered(digits_graphs: Graphs) -> ir.Model:
    return digits_graphs.denoiser


@dataclass(frozen=True)
class Drawn:
    model: Denoiser
    graph: ir.Model
    session: Session


def drawn(model: Denoiser, graph: ir.Model, folder: Path) -> Drawn:
    save_checked(graph, folder / "denoiser.onnx")
    return Drawn(model, graph, Session(folder / "denoiser.onnx"))


@pytest.fixture(scope="module")
def trained(digits: Denoiser, lowered: ir.Model, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return drawn(digits, lowered, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Of images as large, by three convolutions."""
    model = convolved(1)
    return drawn(model, export_graphs(model).denoiser, tmp_path_factory.mktemp("small"))


WITH_AFS = [*((solver, False) for solver in ALL_SOLVERS), (find("iia-ddim"), True), (find("heun"), True)]


@pytest.mark.parametrize(
    ("of", "solver", "afs", "nfe"),
    [
        *(("small", *pair, nfe) for pair in WITH_AFS for nfe in NFES),
        *(("trained", find("iia-ipndm"), False, nfe) for nfe in NFES),
        ("trained", find("iia-edm"), True, 5),
    ],
)
def test_four_paths_agree(
    of: str,
    solver: Solver,
    afs: bool,
    nfe: int,
    noise: torch.Tensor,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """The solver's own float64 loop, PyTorch through the plan, the host loop over denoiser.onnx, and sampler.onnx."""
    drawn: Drawn = request.getfixturevalue(of)
    model, network = drawn.model, Network(drawn.model)
    settings = Settings(
        nfe, solver.name, fit_batch=12, heldout=4, fine_steps=2, reference_steps=24, fit_target="local", afs=afs
    )
    mean = mean_image(noises_of(model, settings), NO_CACHE) if afs else None
    plan, scheme = calibrate(model, settings), scheme_of(solver, grid_of(model, "edm"), settings, mean)
    gammas = [step.gamma for step in plan.report.steps] if plan.report else []
    step = corrected_by(gammas) if gammas else base_step
    looped = scheme.run(network, noise * scheme.sigmas[0], step)
    planned = sample(network, noise, plan)

    unit = noise.float().numpy()
    hosted = sample(lambda x, s: drawn.session.run({"x": x, "sigma": np.array(s, np.float32)})["denoised"], unit, plan)
    path = tmp_path / "sampler.onnx"
    save_checked(unroll(drawn.graph, plan), path)
    with Session(path) as session:
        unrolled = session.run({"noise": unit})["images"]
    assert relative(planned, looped) < 1e-4
    assert relative(hosted, looped) < 1e-4
    assert relative(unrolled, looped) < 1e-4


def test_the_graph_is_the_original_sampler(golden: Golden, tmp_path: Path) -> None:
    graphs = export_graphs(golden.model)
    feed = {"noise": golden.arrays["latents"]}
    feed |= {name: value.numpy() for name, value in golden.conditions.items()}
    write_graphs(graphs, fixed_plan(golden.model, "heun", 9), tmp_path)
    with Session(tmp_path / "sampler.onnx") as session:
        assert relative(session.run(feed)["images"], golden.arrays["edm_sampler_5"]) < 1e-3


def test_onnx_accepts_the_files_in_full(digits: Denoiser, digits_graphs: Graphs, tmp_path: Path) -> None:
    write_graphs(digits_graphs, fixed_plan(digits, "ipndm", 10), tmp_path)
    for name in ("sampler.onnx", "denoiser.onnx"):
        onnx.checker.check_model(str(tmp_path / name), full_check=True)
        inferred = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / name), strict_mode=True, data_prop=True)
        known = {value.name for value in inferred.graph.value_info}
        assert all(output in known for node in inferred.graph.node[:-1] for output in node.output)
        assert inferred.opset_import[0].version >= 21
        assert not any(node.metadata_props for node in inferred.graph.node)


def test_weights_are_stored_once_and_the_embedding_is_folded(
    digits: Denoiser, digits_graphs: Graphs, tmp_path: Path
) -> None:
    graphs = write_graphs(digits_graphs, fixed_plan(digits, "ipndm", 10), tmp_path)
    assert graphs.sampler_bytes <= 1.20 * graphs.denoiser_bytes
    model = onnx.load(tmp_path / "sampler.onnx")
    names = [initializer.name for initializer in model.graph.initializer]
    assert len(names) == len(set(names))
    large = [bytes(t.raw_data) for t in model.graph.initializer if len(t.raw_data) > 20_000]
    assert len(large) == len(set(large))
    assert not any("map_layer" in name or "affine" in name for name in names)
    assert not {"Gemm", "Sin", "Cos"} & {node.op_type for node in model.graph.node}


def test_nodes_grow_with_evaluations_and_nothing_else(digits: Denoiser, lowered: ir.Model) -> None:
    counts = {nfe: len(unroll(lowered, fixed_plan(digits, "ddim", nfe)).graph) for nfe in (1, 2, 3)}
    assert counts[3] - counts[2] == pytest.approx(counts[2] - counts[1], abs=4)
    assert counts[1] < len(lowered.graph) + 5


def test_the_lowered_denoiser_is_the_exported_one(digits: Denoiser, digits_graph: ir.Model, tmp_path: Path) -> None:
    x, sigma = torch.randn(3, *digits.spec.shape), 0.4
    feed = {"x": x.numpy(), "sigma": np.array(sigma, np.float32)}
    found = []
    for lower in (False, True):
        model = ir.Model(digits_graph.graph.clone(), ir_version=digits_graph.ir_version)
        if lower:
            lower_group_norm(model)
            keep_batch_in_reshapes(model)
            assert "GroupNormalization" not in {node.op_type for node in model.graph}
        drop_unused(model.graph)
        path = tmp_path / f"{lower}.onnx"
        save_checked(model, path)
        with Session(path) as session:
            found.append(session.run(feed)["denoised"])
    for denoised in found:
        assert relative(denoised, digits(x, sigma)) < 1e-5


def test_any_batch_runs(digits: Denoiser, lowered: ir.Model, tmp_path: Path) -> None:
    save_checked(unroll(lowered, fixed_plan(digits, "ddim", 2)), tmp_path / "s.onnx")
    noise = np.random.default_rng(0).normal(size=(7, *digits.spec.shape)).astype(np.float32)
    with Session(tmp_path / "s.onnx") as session:
        together = session.run({"noise": noise})["images"]
        apart = np.concatenate([session.run({"noise": noise[i : i + 1]})["images"] for i in range(7)])
    np.testing.assert_allclose(together, apart, atol=1e-5)


@pytest.fixture(scope="module")
def tiny() -> tuple[Denoiser, Graphs]:
    model = models.load(TINY)
    return model, export_graphs(model)


def test_uint8_output_rounds_clips_and_moves_channels_last(tiny: tuple[Denoiser, Graphs], tmp_path: Path) -> None:
    model, graphs = tiny
    noise = 3 * np.random.default_rng(0).normal(size=(4, *model.spec.shape)).astype(np.float32)
    feed: dict[str, np.ndarray] = {"noise": noise, "class_labels": np.arange(4)}
    plan = fixed_plan(model, "ddim", 2)
    images = {}
    for output in ("float32", "uint8"):
        (tmp_path / output).mkdir()
        write_graphs(graphs, plan, tmp_path / output, output)
        with Session(tmp_path / output / "sampler.onnx") as session:
            images[output] = session.run(feed)["images"]
    assert images["uint8"].dtype == np.uint8
    assert images["uint8"].shape == (4, 16, 16, 3)
    expected = to_uint8(images["float32"])
    assert (np.abs(images["uint8"].astype(int) - expected) > 0).mean() < 1e-3  # a tie may round either way
    assert images["float32"].max() > 1
    assert images["uint8"].max() == 255


def test_classes_reach_every_evaluation(tiny: tuple[Denoiser, Graphs], tmp_path: Path) -> None:
    model, graphs = tiny
    plan = fixed_plan(model, "ipndm", 3)
    write_graphs(graphs, plan, tmp_path)
    noise = np.repeat(np.random.default_rng(0).normal(size=(1, *model.spec.shape)).astype(np.float32), 3, axis=0)
    labels = np.array([2, 7, -1])
    with Session(tmp_path / "sampler.onnx") as session:
        images = session.run({"noise": noise, "class_labels": labels})["images"]
    expected = sample(
        Network(model, {"class_labels": torch.from_numpy(labels)}), torch.from_numpy(noise).double(), plan
    )
    assert relative(images, expected) < 1e-4
    assert relative(images[0], images[1]) > 1e-3


@pytest.mark.parametrize(("one_batch", "class_label"), [(True, None), (True, 3), (False, 3)])
def test_guidance_and_a_class_are_built_in(one_batch: bool, class_label: int | None, tmp_path: Path) -> None:
    model = conditioned(of_classes(), class_label, 2.0, one_batch, null_class=0)
    plan = fixed_plan(model, "ipndm", 3)
    write_graphs(export_graphs(model), plan, tmp_path)
    noise = np.random.default_rng(0).normal(size=(5, *model.spec.shape)).astype(np.float32)
    labels = np.array([2, 7, -1, 0, 3])
    feed = {"noise": noise} | ({"class_labels": labels} if class_label is None else {})
    with Session(tmp_path / "sampler.onnx") as session:
        images = session.run(feed)["images"]
    network = Network(model, {"class_labels": torch.from_numpy(labels)} if class_label is None else {})
    assert relative(images, sample(network, torch.from_numpy(noise).double(), plan)) < 1e-4


def test_one_class_costs_nothing_in_the_graph(tmp_path: Path) -> None:
    """What the class does to the embedding is as constant as the noise level."""
    found = []
    for label in (None, 3):
        model = conditioned(of_classes(), label)
        write_graphs(export_graphs(model), fixed_plan(model, "ddim", 2), tmp_path)
        graph = onnx.load(tmp_path / "sampler.onnx").graph
        found.append(([value.name for value in graph.input], "Gemm" in {node.op_type for node in graph.node}))
    assert found == [(["noise", "class_labels"], True), (["noise"], False)]


def test_a_network_that_fixes_the_number_of_images_is_refused() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return x * torch.ones(len(x), 1, 1, 1)

    with pytest.raises(UserError, match=r"Fixed computes with a fixed number of images.*x\.shape\[0\]"):
        export_denoiser(models.adapt(Fixed(), (1, 4, 4)))


def test_equal_noise_levels_share_constants_and_close_ones_do_not(digits: Denoiser, lowered: ir.Model) -> None:
    same = Plan("test", (1.0, 1.0), ((1.0,), (0.5, 0.5), (0.0, 0.0, 1.0)))
    close = Plan("test", (1.0, 1.0 + 1e-9), same.table)
    assert len(unroll(lowered, same).graph.initializers) < len(unroll(lowered, close).graph.initializers)


def test_large_weights_go_beside_the_graph(digits: Denoiser, lowered: ir.Model, tmp_path: Path) -> None:
    sampler = unroll(lowered, fixed_plan(digits, "ddim", 2))
    noise = np.random.default_rng(0).normal(size=(2, *digits.spec.shape)).astype(np.float32)
    found = []
    for limit in (0, 10**9):
        path = tmp_path / str(limit) / "sampler.onnx"
        path.parent.mkdir()
        written = save_checked(sampler, path, inline_limit=limit)
        assert written == sum(file.stat().st_size for file in path.parent.iterdir())
        assert path.with_name("sampler.onnx.data").exists() == (limit == 0)
        with Session(path, optimise=False) as session:
            found.append(session.run({"noise": noise})["images"])
    np.testing.assert_array_equal(found[0], found[1])


def test_graphs_share_a_file_of_weights(digits: Denoiser, lowered: ir.Model, tmp_path: Path) -> None:
    plan, beside = fixed_plan(digits, "ddim", 2), Beside(tmp_path / "weights.data")
    written = save_checked(lowered, tmp_path / "denoiser.onnx", beside=beside)
    alone = beside.path.stat().st_size
    assert written == alone + (tmp_path / "denoiser.onnx").stat().st_size
    save_checked(unroll(lowered, plan), tmp_path / "sampler.onnx", beside=beside)
    assert beside.path.stat().st_size < 1.1 * alone
    for name, graph in (("denoiser", lowered), ("sampler", unroll(lowered, plan))):
        read = ir.load(tmp_path / f"{name}.onnx").graph.initializers
        for key, value in graph.graph.initializers.items():
            assert value.const_value is not None
            np.testing.assert_array_equal(read[key].const_value.numpy(), value.const_value.numpy())  # type: ignore[union-attr]


def test_the_written_file_is_what_onnx_itself_would_write(digits: Denoiser, lowered: ir.Model, tmp_path: Path) -> None:
    save_checked(lowered, tmp_path / "ours.onnx")
    ours, theirs = onnx.load(tmp_path / "ours.onnx"), ir.to_proto(lowered)
    assert ours.graph.node == theirs.graph.node
    assert {t.name: onnx.numpy_helper.to_array(t).tobytes() for t in ours.graph.initializer} == {
        t.name: onnx.numpy_helper.to_array(t).tobytes() for t in theirs.graph.initializer
    }


def test_the_plan_travels_as_json(digits: Denoiser, tmp_path: Path) -> None:
    plan = trace(Scheme(find("heun"), [80.0, 3.0, 0.1, 0.0], 5))
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert json.loads((tmp_path / "plan.json").read_text())["solver"] == "heun"
