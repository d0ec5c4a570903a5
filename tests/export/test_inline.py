"""A model that is an ONNX graph is exported as that graph, with its stages and with what is built around it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import version_converter

import edge_sampler
from edge_sampler import models
from edge_sampler.export.assemble import Graphs, export_bundle, export_graphs, write_graphs
from edge_sampler.export.form import Form
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.roll import roll
from edge_sampler.export.unroll import unroll
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import with_examples
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import facts_of, write_manifest
from edge_sampler.runtime.plan import sample
from edge_sampler.runtime.sampler import load
from edge_sampler.runtime.verified import describe_files
from tests.bundles import TINY
from tests.conftest import bundle, export, relative
from tests.export.networks import euler, frames
from tests.graphs import X, graph, put

PLAN = euler([20.0, 5.0, 1.0])


def nodes(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def weights(graphs: Graphs) -> list[ir.Value]:
    return list(graphs.denoiser.graph.initializers.values())


def test_the_graph_of_a_graph_is_itself(made: Path, tmp_path: Path) -> None:
    """Down to every node of the sampler, so that no rewrite was lost; from the second time on, to the byte."""
    bundle, model = Bundle.open(made), models.load(str(made))
    graphs = export_graphs(model)
    assert nodes(graphs.denoiser) == nodes(ir.load(made / "denoiser.onnx"))
    (tmp_path / "second").mkdir()
    write_graphs(graphs, bundle.plan, tmp_path / "second", output="images")
    assert nodes(ir.load(tmp_path / "second" / "sampler.onnx")) == nodes(ir.load(made / "sampler.onnx"))
    noise = {"noise": np.random.default_rng(0).standard_normal((3, 1, 8, 8), np.float32)}
    with Session(made / "sampler.onnx") as one, Session(tmp_path / "second" / "sampler.onnx") as other:
        np.testing.assert_allclose(one.run(noise)["images"], other.run(noise)["images"], atol=2e-5)

    second = tmp_path / "second" / "denoiser.onnx"
    second.with_suffix(".json").write_text('{"sigma_min": 0.002, "sigma_max": 80}')
    (tmp_path / "third").mkdir()
    write_graphs(export_graphs(models.load(str(second))), bundle.plan, tmp_path / "third")
    assert (tmp_path / "third" / "denoiser.onnx").read_bytes() == second.read_bytes()


@pytest.mark.parametrize("built", [{"null_class": 9, "guidance": 2.0}, {"class_label": 3}], ids=str)
def test_what_is_built_around_a_graph_costs_no_node(built: dict[str, float], conditional: Path) -> None:
    """A class built in is as much a constant as in the network's own export."""
    graphs = [export_graphs(conditioned(models.load(str(one)), **built)) for one in (TINY, conditional)]  # type: ignore[arg-type]
    network, other = (unroll(one.denoiser, PLAN) for one in graphs)
    assert nodes(other) == nodes(network)


def test_two_passes_share_the_weights(conditional: Path, tmp_path: Path) -> None:
    model = models.load(str(conditional))
    one, two = (export_graphs(conditioned(model, null_class=9, guidance=2.0, one_batch=one)) for one in (True, False))
    assert len(two.denoiser.graph) > 1.8 * len(one.denoiser.graph)
    sizes = [sum(value.const_value.nbytes for value in weights(each) if value.const_value) for each in (one, two)]
    assert sizes[1] < 1.01 * sizes[0]
    every = [str(value.name) for node in two.denoiser.graph for value in node.outputs]
    every += two.denoiser.graph.initializers
    assert len(every) == len(set(every))  # nodes around the graph and those of it were named without each other
    feed = {"noise": np.ones((2, 3, 16, 16), np.float32), "class_labels": np.array([1, 2])}
    images = []
    for name, each in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        write_graphs(each, PLAN, tmp_path / name)
        with Session(tmp_path / name / "sampler.onnx") as session:
            images.append(session.run(feed)["images"])
    np.testing.assert_allclose(images[0], images[1], atol=1e-4)


def test_a_text_bundle_is_exported_from_its_graphs(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Encoder, tokenizer and guidance are those of the first bundle."""
    first, second, prompts = bundle("hearts", tmp_path_factory), tmp_path / "second", tmp_path / "prompts.txt"
    prompts.write_text("a red heart\na cat\na blue star\na dog\n")
    arguments = ["--nfe", "2", "--solver", "ddim", "--check", "0", "--samples", "1"]
    export("--model", str(first / "denoiser.onnx"), *arguments, "--prompts", str(prompts), "--out", str(second))
    manifest = Bundle.open(second).manifest
    assert manifest["stages"] == ["encoder"]
    assert manifest["model"]["guidance"] == 3.0
    assert manifest["inputs"] == Bundle.open(first).manifest["inputs"]
    told: dict[str, Any] = {"prompt": ["a red heart", "a ghost"], "negative_prompt": "a blue star"}
    with load(first) as one, load(second) as other:
        np.testing.assert_allclose(one.sample([0, 1], **told), other.sample([0, 1], **told), atol=1e-5)


def test_stages_and_named_axes_are_taken_along(tmp_path: Path) -> None:
    network = frames(stages=True)
    export_bundle(network, PLAN, tmp_path / "first", Form(samples=1))
    model = models.load(str(tmp_path / "first"))
    with_examples(model, network.examples)
    graphs = export_graphs(model)
    export_bundle(model, PLAN, tmp_path / "second", Form(samples=1), graphs=graphs)
    manifests = [Bundle.open(tmp_path / name).manifest for name in ("first", "second")]
    for fact in ("inputs", "output", "stages"):
        assert manifests[0][fact] == manifests[1][fact], fact
    words, mask = np.ones((2, 9), np.int64), np.ones((2, 31), bool)
    with load(tmp_path / "first") as one, load(tmp_path / "second") as other:
        audio = [sampler.sample([0, 1], words=words, mask=mask) for sampler in (one, other)]
    assert audio[0].shape == (2, 31, 3)
    np.testing.assert_allclose(audio[0], audio[1], atol=1e-5)
    assert "Loop" in nodes(roll(graphs.denoiser, PLAN))

    folder = tmp_path / "first"  # a stage is part of what the model is
    changed = onnx.load(folder / "decoder.onnx")
    changed.doc_string = "another"
    onnx.save(changed, folder / "decoder.onnx")
    facts = facts_of(manifests[0])
    write_manifest(folder / "manifest.json", facts, describe_files(folder))
    assert models.load(str(folder)).spec.fingerprint != model.spec.fingerprint


def sampled(model: Denoiser, folder: Path) -> np.ndarray:
    folder.mkdir()
    write_graphs(Graphs(model.spec, export_denoiser(model), None, None), PLAN, folder)
    with Session(folder / "sampler.onnx") as session:
        return session.run({"noise": np.ones((2, 1, 4, 4), np.float32)})["images"]


def test_graphs_of_an_older_opset_are_brought_up_to_date(tmp_path: Path) -> None:
    expected = sampled(models.load(put(tmp_path, graph())), tmp_path / "same")
    old = version_converter.convert_version(graph(), 15)
    assert old.opset_import[0].version == 15
    found = sampled(models.load(put(tmp_path, old)), tmp_path / "older")
    np.testing.assert_array_equal(found, expected)
    (one,) = (node for node in old.graph.node if node.op_type == "Constant")
    old.graph.node.remove(one)
    old.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), one.output[0]))
    path = put(tmp_path, old)
    onnx.save(old, path, save_as_external_data=True, location="toy.data", size_threshold=0)
    assert (tmp_path / "toy.data").is_file()
    np.testing.assert_array_equal(sampled(models.load(path), tmp_path / "beside"), expected)
    with_function = graph()
    with_function.graph.node[-1].op_type, with_function.graph.node[-1].domain = "Ratio", "mine"
    body = [onnx.helper.make_node("Div", ["a", "b"], ["c"])]
    opsets = [onnx.helper.make_opsetid("", 21)]
    with_function.functions.append(onnx.helper.make_function("mine", "Ratio", ["a", "b"], ["c"], body, opsets))
    with_function.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    found = sampled(models.load(put(tmp_path, with_function)), tmp_path / "function")
    np.testing.assert_array_equal(found, expected)


def unsorted(model: onnx.ModelProto, path: str) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, path)


def with_a_constant_beside(model: onnx.ModelProto, path: str) -> None:
    """Its version is another, too, so that the constant goes through a converter."""
    old, options = version_converter.convert_version(model, 15), {"size_threshold": 0, "convert_attribute": True}
    (node,) = (node for node in old.graph.node if node.op_type == "Constant")
    node.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(1, np.float32)))
    onnx.save(old, path, save_as_external_data=True, location="toy.data", **options)  # type: ignore[arg-type]
    assert (Path(path).parent / "toy.data").is_file()


def with_a_wrong_shape(model: onnx.ModelProto, path: str) -> None:
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("spread", onnx.TensorProto.FLOAT, [3, 2]))
    onnx.save(model, path)


def with_weights_before_version_4(model: onnx.ModelProto, path: str) -> None:
    model.opset_import[0].version, model.ir_version = 9, 3
    (one,) = (node for node in model.graph.node if node.op_type == "Constant")
    model.graph.node.remove(one)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), one.output[0]))
    onnx.save(model, path)


@pytest.mark.parametrize("write", [unsorted, with_a_constant_beside, with_a_wrong_shape, with_weights_before_version_4])
def test_what_onnx_runtime_takes_is_exported_without_a_word(
    write: Callable[[onnx.ModelProto, str], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = sampled(models.load(put(tmp_path, graph())), tmp_path / "same")
    write(graph(), str(tmp_path / "toy.onnx"))
    caplog.clear()
    found = sampled(models.load(str(tmp_path / "toy.onnx")), tmp_path / "other")
    np.testing.assert_array_equal(found, expected)
    assert not [record for record in caplog.records if "hape inference" in record.getMessage() or record.exc_info]


BRANCHES = (
    "then_branch = one () => (float[batch, 1, 4, 4] a) { a = Neg(x) }, "
    "else_branch = two () => (float[batch, 1, 4, 4] b) { b = Neg(x) }"
)
CHOICE = "zero = Constant<value = float {0}>() high = Greater(sigma, zero) denoised = If (high)"
REFUSED = {
    "later": (version_converter.convert_version(graph(), 22), "is of opset 22; graphs here are of 21"),
    "control flow": (graph(nodes=f"{CHOICE} <{BRANCHES}>"), r"control flow \(If\), which cannot be unrolled"),
}


@pytest.mark.parametrize(("refused", "message"), REFUSED.values(), ids=REFUSED)
def test_graphs_that_cannot_be_part_of_another_are_refused(
    refused: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    model = models.load(put(tmp_path, refused))
    with torch.inference_mode():
        assert model(torch.ones(1, 1, 4, 4), 1.0).shape == (1, 1, 4, 4)  # it can be fitted
    with pytest.raises(UserError, match=message):
        export_denoiser(model)


def test_a_value_that_is_given_may_be_the_answer(tmp_path: Path) -> None:
    same = graph(f"{X}, float[] sigma", "float[batch, 1, 4, 4] x", "")
    path = put(tmp_path, same)
    drawn = export_denoiser(models.load(path))
    assert [value.name for value in drawn.graph.outputs] == ["denoised"]
    assert replace(models.load(path).spec, name="").shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["w20.0", "w0.75", "denoised_0", "x_1", "noise", "images", "shape_0_2_8", "zeros_4"])
def test_a_weight_has_any_name(name: str, tmp_path: Path) -> None:
    """Also one that this package gives to what it puts into graphs."""
    normal = "u = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() k = GroupNormalization<num_groups = 2>(x, u, u)"
    nodes = f"{normal} held = Constant<value = float {{0.5}}>() scaled = Mul(k, held) denoised = Add(scaled, x)"
    given = graph("float[batch, 4, 2, 2] x, float[] sigma", "float[batch, 4, 2, 2] denoised", nodes)
    for node in given.graph.node:
        for values in (node.input, node.output):
            values[:] = [name if value == "held" else value for value in values]
    model = models.load(put(tmp_path, given))
    noise = np.random.default_rng(0).standard_normal((2, 4, 2, 2), np.float32)
    with torch.inference_mode():
        expected = sample(lambda x, s: model(x.float(), s).double(), torch.from_numpy(noise).double(), PLAN)
    write_graphs(export_graphs(model), PLAN, tmp_path)
    with Session(tmp_path / "sampler.onnx", ["images", "denoised_0"]) as session:
        found = session.run({"noise": noise})
    assert relative(found["images"], expected) < 1e-5
    assert found["denoised_0"].shape == noise.shape


def test_group_norms_of_older_opsets_have_numbers_for_groups(tmp_path: Path) -> None:
    nodes = "u = Constant<value_floats = [1.0, 3.0]>() k = GroupNormalization<num_groups = 2>(x, u, u)"
    given = graph(
        "float[batch, 4, 2, 2] x, float[] sigma", "float[batch, 4, 2, 2] denoised", f"{nodes} denoised = Tanh(k)"
    )
    given.opset_import[0].version = 18
    model = models.load(put(tmp_path, given))
    noise = np.random.default_rng(0).standard_normal((2, 4, 2, 2), np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(noise), 1.0)
    write_graphs(export_graphs(model), PLAN, tmp_path)
    with Session(tmp_path / "denoiser.onnx") as session:
        found = session.run({"x": noise, "sigma": np.array(1, np.float32)})["denoised"]
    assert relative(found, expected) < 1e-5


def test_a_graph_may_be_asked_twice(tmp_path: Path) -> None:
    """Whatever its nodes are called."""
    given = graph()
    for node in given.graph.node:
        node.name = node.output[0]
    model = models.load(put(tmp_path, given))
    branches = [edge_sampler.Branch(2.0), edge_sampler.Branch(-1.0)]
    guided = edge_sampler.Guided(model, branches, 2.0, one_batch=False)
    np.testing.assert_allclose(sampled(guided, tmp_path / "twice"), sampled(model, tmp_path / "once"), rtol=1e-5)
