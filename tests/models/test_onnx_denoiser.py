"""A denoiser that is an ONNX graph answers, is told apart and is refused as a network is."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.arguments import file_name
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate import network as networks
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.side_by_side import Replicas
from edge_sampler.calibration.settings import Settings
from edge_sampler.export.assemble import export_bundle
from edge_sampler.export.form import Form
from edge_sampler.models import onnx_graph
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.eager import make
from edge_sampler.models.own import adapt, with_examples
from edge_sampler.models.verify import verify
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from tests.bundles import TINY, remake_manifest
from tests.conftest import report_of
from tests.export.networks import Policy, euler
from tests.graphs import FITS, LEVEL, LEVELS, MADE, X, graph, put


def answers(model: Denoiser, x: torch.Tensor, sigma: torch.Tensor | float, **told: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        return model(x, sigma, **told).numpy()


def test_answers_are_the_networks(digits: Denoiser, made: Path) -> None:
    model, x = models.load(str(made)), torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for sigma in (0.01, 1.0, 60.0, torch.tensor([0.5, 2.0, 30.0])):
        scaled = x * torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(answers(model, scaled, sigma), answers(digits, scaled, sigma), atol=2e-5)
    with pytest.raises(TypeError, match="unknown condition 'class_labels'"):
        model(x, 1.0, class_labels=torch.tensor([0]))


def test_a_bundle_describes_its_graph(digits: Denoiser, made: Path) -> None:
    spec, own = models.load(str(made / "denoiser.onnx")).spec, digits.spec
    assert spec == models.load(str(made)).spec
    assert spec.name == "edm-digits.onnx"
    told = ("inputs", "sigma_min", "sigma_max", "licence", "output", "guidance", "branches", "schedule")
    for fact in (*told, "built_in", "random_weights"):
        assert getattr(spec, fact) == getattr(own, fact), fact
    assert spec.weights_sha256 == Bundle.open(made).manifest["files"]["denoiser.onnx"]["sha256"]
    assert spec.fingerprint != own.fingerprint
    assert file_name("a/denoiser.onnx") == "denoiser"


def test_a_plan_fitted_over_the_graph_is_the_networks(digits: Denoiser, made: Path) -> None:
    graph, settings = (
        models.load(str(made)),
        Settings(3, "iia-ipndm", fit_target="global", fit_batch=8, heldout=8, reference_steps=24),
    )
    one, other = (calibrate(model, settings) for model in (digits, graph))
    assert one.sigmas == other.sigmas
    for first, second in zip(one.table, other.table, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
    assert report_of(one).evaluations == report_of(other).evaluations
    assert report_of(other).fingerprint == graph.spec.fingerprint
    errors = [report_of(calibrate(model, replace(settings, refine=1))).refinement for model in (digits, graph)]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-2)  # rounding moves entries that hardly matter
    assert errors[1][1] < 0.95 * errors[1][0]


def test_conditions_and_their_nulls(conditional: Path) -> None:
    """Guidance, a class built in and a null class are built around a graph as around a network."""
    x, told = (
        torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
        {"class_labels": torch.tensor([1, 2])},
    )
    bare, network = models.load(str(conditional)), models.load(TINY)
    for built, given in (
        ({}, told),
        ({}, {"class_labels": torch.tensor([4])}),
        ({"null_class": 9, "guidance": 2.0}, told),
        ({"null_class": 9, "guidance": 2.0, "one_batch": False}, told),
        ({"null_class": 9}, {}),
        ({"class_label": 3}, {}),
    ):
        around, expected = (conditioned(model, **built) for model in (bare, network))
        np.testing.assert_allclose(answers(around, x, 2.0, **given), answers(expected, x, 2.0, **given), atol=1e-5)
    with pytest.raises(UserError, match="is missing, and has no value that means nothing"):
        bare(x, 2.0)


def test_what_is_built_into_a_bundle_is_known(tmp_path: Path) -> None:
    told = {"seen": np.random.default_rng(0).standard_normal((8, 10), np.float32)}
    torch.manual_seed(0)
    network = adapt(Policy(), (16, 7), "EDMPrecond", conditions={"seen": Condition((10,), null=0.0)}, examples=told)
    guided = conditioned(network, guidance=3.0)
    export_bundle(guided, euler([5.0, 1.0]), tmp_path / "guided", Form(samples=1))
    model = models.load(str(tmp_path / "guided"))
    assert (model.spec.guidance, model.spec.branches, model.spec.random_weights) == (3.0, 2, False)
    with pytest.raises(UserError, match=r"no examples of its condition seen.*--conditions"):
        calibrate(model, Settings(2, "iia-ddim", fit_batch=4, heldout=2))
    with_examples(model, told)
    settings = Settings(2, "iia-ddim", fit_batch=4, heldout=2, fine_steps=2)
    fitted = [calibrate(one, settings) for one in (guided, model)]
    np.testing.assert_allclose(fitted[0].table[-1], fitted[1].table[-1], atol=1e-4)
    assert report_of(fitted[0]).evaluations == report_of(fitted[1]).evaluations
    export_bundle(model, euler([5.0, 1.0]), tmp_path / "again", Form(samples=1))
    again = Bundle.open(tmp_path / "again")
    with pytest.raises(UserError, match="is an ONNX graph, which PyTorch does not run"):
        make(again, None)
    with pytest.raises(UserError, match="is no pipeline"):  # the working folder is none; empty names nothing else
        make(Bundle.open(tmp_path / "guided"), "")


def test_a_null_that_is_an_array_is_not_guessed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    null = np.linspace(0, 1, 10, dtype=np.float32)
    examples = {"seen": np.zeros((4, 10), np.float32)}
    network = adapt(
        Policy(), (16, 7), "EDMPrecond", conditions={"seen": Condition((10,), null=null)}, examples=examples
    )
    export_bundle(network, euler([5.0, 1.0]), tmp_path / "bundle", Form(samples=1))
    model = conditioned(models.load(str(tmp_path / "bundle")), guidance=2.0)
    with pytest.raises(UserError, match="is an array, which a bundle does not hold"):
        answers(model, torch.zeros(1, 16, 7), 1.0, seen=torch.zeros(1, 10))


def test_a_graph_of_anybodys_is_described_by_a_file_beside_it(tmp_path: Path) -> None:
    nodes = "kind = Cast<to = 1>(class_labels) shape = Constant<value = int64[3] {-1, 1, 1}>() "
    nodes += "shift = Reshape(kind, shape) minus = Sub(x, shift) denoised = Mul(minus, sigma)"
    model = graph("float[] sigma, float[N, length, 3] x, int64[N] class_labels", "float[N, length, 3] denoised", nodes)
    facts = {
        **LEVELS,
        "axes": {"length": [2, 4, 8]},
        "conditions": {"class_labels": {"choices": 5, "null": 0}},
        "schedule": "flow",
        "licence": "mine",
        "output": "tracks",
    }
    denoiser = models.load(put(tmp_path, model, facts))
    spec = denoiser.spec
    assert (spec.name, spec.shape, spec.classes, spec.schedule) == ("toy.onnx", (4, 3), 5, "flow")
    assert (spec.sigma_min, spec.sigma_max, spec.licence, spec.output.name) == (0.01, 20.0, "mine", "tracks")
    x = torch.ones(2, 6, 3)
    np.testing.assert_allclose(answers(denoiser, x, 0.5, class_labels=torch.tensor([1, 3])).mean((1, 2)), [0.0, -1.0])
    np.testing.assert_allclose(answers(denoiser, x, 0.5).mean(), 0.5)
    settings = Settings(4, "iia-ddim", fit_target="global", fit_batch=4, heldout=2)
    assert report_of(calibrate(models.load(put(tmp_path, graph())), settings)).heldout_rms_error < 0.1


def test_a_fingerprint_is_of_the_file_its_weights_and_what_describes_it(tmp_path: Path, made: Path) -> None:
    def fingerprint(path: str) -> str:
        return models.load(path).spec.fingerprint

    first = fingerprint(put(tmp_path, graph()))
    assert fingerprint(put(tmp_path, graph())) == first
    others = [fingerprint(put(tmp_path, graph(nodes=FITS.replace("{1}", "{1.5}"))))]
    others.append(fingerprint(put(tmp_path, graph(), {**LEVELS, "sigma_max": 10.0})))
    assert len({first, *others}) == 3

    beside = onnx.load(made / "denoiser.onnx")
    path = put(tmp_path, beside)
    one = fingerprint(path)
    onnx.save(beside, path, save_as_external_data=True, location="toy.data")
    two = fingerprint(path)
    weights = tmp_path / "toy.data"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    assert len({one, two, fingerprint(path)}) == 3
    weights.unlink()
    with pytest.raises(UserError, match=r"has weights in 'toy.data', which is no file beside it"):
        models.load(path)


WRONG = {
    "samples that change each other": (
        graph(nodes="all = Constant<value = int64[1] {0}>() mean = ReduceMean(x, all) denoised = Sub(x, mean)"),
        "toy.onnx answers otherwise for the same sample beside another one",
    ),
    "another shape than it declares": (graph(nodes="denoised = Concat<axis = 1>(x, x)"), r"made \[2, 2, 4, 4\]"),
    "a sampler": (graph("float[batch, 4] noise", "float[batch, 4] images", "images = Neg(noise)"), "whole sampler"),
    "levels by sample": (graph(f"{X}, float[batch] sigma"), r"sigma float32 \[batch\].*takes .*sigma float32 \[\]"),
    "one sample": (graph(f"float[1, 1, 4, 4] x, {LEVEL}"), r"takes x float32 \[1, 1, 4, 4\]"),
    "half": (graph(f"float16[batch, 4] x, {LEVEL}", "float16[batch, 4] y", "y = Neg(x)"), "x is float16; allowed"),
    "two outputs": (
        graph(outputs=f"{MADE}, float[batch, 1, 4, 4] twice", nodes=f"{FITS} twice = Add(x, x)"),
        "makes one value like x",
    ),
    "another shape": (graph(outputs="float[batch, 16] y", nodes="y = Flatten(x)"), "makes one value like x"),
    "no level": (graph(X, nodes="denoised = Neg(x)"), "takes x, sigma and conditions"),
    "an axis without sizes": (
        graph(f"float[batch, n] x, {LEVEL}", "float[batch, n] y", "y = Mul(x, sigma)"),
        "axis 'n' has no sizes",
    ),
    "no shape": (graph(outputs="float[] denoised"), "does not tell the shape of denoised"),
}


@pytest.mark.parametrize(("model", "message"), WRONG.values(), ids=WRONG)
def test_other_graphs_are_refused(model: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    path = put(tmp_path, model)
    with pytest.raises(UserError, match=message):
        models.load(path)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"sigma_min": 0.01}, r"toy\.json: sigma_max is missing; expected such as"),
        ({"sigma_min": 0.01, "sigma_max": "high"}, "sigma_max is 'high'; it must be a number"),
        ({"sigma_min": 1, "sigma_max": 10**400}, "unusable .OverflowError: int too large"),
        ({"sigma_min": 5, "sigma_max": 1}, "above 0 and in order"),
        ({**LEVELS, "sigma_data": 1}, "unknown 'sigma_data'"),
        ({**LEVELS, "schedule": "own"}, "schedule is 'own'; allowed: edm, flow"),
        ({**LEVELS, "conditions": {"text": {}}}, "unknown text among conditions; the graph has none"),
        ([1], r"it is \[1\]"),
        ({**LEVELS, "sigma_min": True}, "sigma_min is True; it must be a number"),
        ({**LEVELS, "licence": "a\nb"}, "licence is 'a.nb'; it must be a line of text"),
        ({**LEVELS, "output": None}, "output is None; it must be a line of text"),
        ({**LEVELS, "axes": {"length": [1, 2, 3]}}, r"no shape has the axis 'length'; the graph takes x float32"),
    ],
)
def test_descriptions_are_checked(facts: object, message: str, tmp_path: Path) -> None:
    path = put(tmp_path, graph(), facts)
    with pytest.raises(UserError, match=message):
        models.load(path)


@pytest.mark.parametrize("said", [{"choices": "ten"}, {"null": "none"}, {"nul": 0}, 5])
def test_what_is_said_of_conditions_is_checked(said: object, tmp_path: Path) -> None:
    model = graph(f"{X}, {LEVEL}, int64[batch] kind", nodes=FITS)
    models.load(put(tmp_path, model, {**LEVELS, "conditions": {"kind": {"choices": 10, "null": -1}}}))
    path = put(tmp_path, model, {**LEVELS, "conditions": {"kind": said}})
    with pytest.raises(UserError, match=r"toy\.json: (unusable|unknown)"):
        models.load(path)


@pytest.mark.parametrize(("dtype", "part", "rounds"), [("f2", 0.01, True), ("f2", 0.25, False), ("f4", 0.01, False)])
def test_a_graph_of_few_bits_rounds(dtype: str, part: float, rounds: bool, tmp_path: Path) -> None:
    """One sample comes out otherwise than two: by 1 in 100, as 16 bits may do, or by more."""
    many = "count = Shape<end = 1>(x) many = Cast<to = 1>(count) share = Cast<to = 1>(part) more = Mul(many, share) "
    model = graph(nodes=many + "one = Constant<value = float[1] {1}>() grown = Add(more, one) denoised = Mul(x, grown)")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([part], dtype), "part"))
    with nullcontext() if rounds else pytest.raises(UserError, match="otherwise for one sample than for the same in"):
        models.load(put(tmp_path, model))


def test_what_is_no_graph_and_what_nothing_describes(tmp_path: Path, copy: Path) -> None:
    path = put(tmp_path, graph())
    Path(path).with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="not a readable JSON file"):
        models.load(path)
    Path(path).with_suffix(".json").unlink()
    with pytest.raises(UserError, match=r"write .*toy\.json, such as .*sigma_min.*denoiser\.onnx of a bundle"):
        models.load(path)
    for content in (b"", b"no graph", (copy / "denoiser.onnx").read_bytes()[:5000]):
        Path(path).write_bytes(content)
        with pytest.raises(UserError, match="damaged, or no ONNX file"):
            models.load(path)
    with pytest.raises(UserError, match="no ONNX file at"):
        models.load(str(tmp_path / "none.onnx"))
    with pytest.raises(UserError, match="ONNX Runtime cannot load"):
        models.load(put(tmp_path, graph(nodes="denoised = Unheard(x, sigma)")))
    with pytest.raises(UserError, match=r"no denoiser, but another graph of that bundle: name .*denoiser\.onnx"):
        models.load(str(copy / "sampler.onnx"))
    for arguments in ({"random_weights": True}, {"weights": "other.pkl"}):
        with pytest.raises(UserError, match="whole as it is; leave --weights"):
            models.load(str(copy), **arguments)
    with (copy / "denoiser.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="not the file the manifest describes"):
        models.load(str(copy))


def test_a_bundle_whose_stages_are_left_out_has_none(tmp_path: Path, made: Path) -> None:
    """What stands in the manifest of the model, and not in the bundle, is the caller's."""
    folder = tmp_path / "bundle"
    shutil.copytree(made, folder)
    remake_manifest(
        folder, lambda facts: (facts["model"].update(made=["features"]), facts["output"].update(name="latents"))
    )
    model = models.load(str(folder))
    assert (model.encoder, model.decoder, model.spec.made) == (None, None, ())
    assert model.spec.output.name == "latents"


@pytest.mark.parametrize("change", [lambda facts: facts["model"].pop("guidance"), lambda facts: facts.pop("stages")])
def test_a_bundle_that_lacks_a_fact_is_refused(change: Callable[[Any], object], copy: Path) -> None:
    remake_manifest(copy, change)
    with pytest.raises(UserError, match=r"manifest.json is damaged: .*(guidance|stages)"):
        models.load(str(copy))


def test_answers_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    nodes = "root = Sqrt(x) denoised = Mul(root, sigma)"
    with pytest.raises(UserError, match="NaN or infinity at noise level 20"):
        calibrate(models.load(put(tmp_path, graph(nodes=nodes))), Settings(2, "iia-ddim", fit_batch=2, heldout=2))


def test_memory_inside_onnx_runtime_bounds_how_many_samples_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch sees nothing of it."""
    grown = 10**9

    def resident() -> Iterator[int]:
        yield from (grown * calls for calls in count())

    told = resident()
    monkeypatch.setattr(onnx_graph, "resident_memory", lambda: next(told))
    runs: list[int] = []
    model = models.load(put(tmp_path, graph()))
    network = Network(model)
    network.meter.progress = runs.append
    network(torch.zeros(10, 1, 4, 4).double(), 1.0)
    assert model.outside_bytes == grown
    assert runs == [4, 4, 2]  # of 4 GiB and 1 GB each
    assert networks.CHUNK_BYTES == 4 * 2**30
    network(torch.zeros(5, 1, 4, 4).double(), 1.0)
    assert model.outside_bytes == grown  # measured once


def test_a_graph_has_threads_of_its_own(tmp_path: Path) -> None:
    """Those of ONNX Runtime: its calls do not run side by side."""
    before, model = torch.get_num_threads(), models.load(put(tmp_path, graph()))
    torch.set_num_threads(2)
    try:
        assert Replicas().of(model, lambda one, row: torch.zeros(1)) == [model]
    finally:
        torch.set_num_threads(before)


def test_verify_tells_of_a_graph(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(models.load(str(made)))
    told = capsys.readouterr().out
    assert "edm-digits.onnx: OnnxGraph of 1.0 M parameters" in told
    assert "shapes SHA-256" not in told
    assert replace(models.load(str(made)).spec, name="").weights_sha256 in told
