"""The examples, as a user runs them, with fewer noises: a policy with stages, and a sequence of any length."""

import importlib.util
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import edge_sampler
from edge_sampler.export.assemble import export_graphs
from edge_sampler.export.unroll import unroll
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample
from tests.conftest import export, relative
from tests.export.test_conditions import flops

EXAMPLES = Path(__file__).parent.parent / "examples"
FIT = edge_sampler.Settings(4, batch=16, heldout=8)


def asked(
    model: edge_sampler.Denoiser, conditions: dict[str, torch.Tensor], x: torch.Tensor, sigma: float
) -> torch.Tensor:
    denoised: torch.Tensor = model(x, sigma, **conditions)
    return denoised


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy() -> edge_sampler.Denoiser:
    made: edge_sampler.Denoiser = example("policy").make(iterations=20)
    return made


@pytest.fixture(scope="module")
def policy_bundle(
    policy: edge_sampler.Denoiser, tmp_path_factory: pytest.TempPathFactory
) -> tuple[edge_sampler.Plan, Path]:
    plan, out = edge_sampler.fit(policy, FIT), tmp_path_factory.mktemp("policy") / "bundle"
    edge_sampler.export_bundle(policy, plan, out)
    return plan, out


def test_a_policy_makes_the_actions_of_its_observation(
    policy: edge_sampler.Denoiser, policy_bundle: tuple[edge_sampler.Plan, Path]
) -> None:
    plan, out = policy_bundle
    bundle = edge_sampler.Bundle.open(out)
    assert within(compare(bundle), 1e-4)
    assert (bundle.output.name, bundle.output.units) == ("actions", "m")
    assert list(bundle.inputs.conditions) == ["observation"]
    assert plan.report
    assert plan.report.examples == (192, 64)
    observed = np.array([[0, 0, 1, 0], [1, 1, -1, -1]], np.float32)
    with edge_sampler.load(out) as sampler:
        actions = sampler.sample([5, 6], observation=observed)
    told = policy.encode({"observation": observed})
    noise = torch.from_numpy(edge_sampler.runtime.noise.unit_noise([5, 6], (16, 2)))
    expected = policy.decode(sample(lambda x, sigma: policy(x, sigma, **told), noise, plan))
    assert relative(actions, expected) < 1e-4
    assert relative(actions[0], actions[1]) > 0.1


def test_the_stages_may_be_left_to_the_caller(
    policy: edge_sampler.Denoiser, policy_bundle: tuple[edge_sampler.Plan, Path], tmp_path: Path
) -> None:
    plan, out = policy_bundle
    edge_sampler.export_bundle(policy, plan, tmp_path / "bare", edge_sampler.Form(encode=False, decode=False))
    bundle = edge_sampler.Bundle.open(tmp_path / "bare")
    assert within(compare(bundle), 1e-4)
    assert {path.name for path in bundle.folder.glob("*.onnx")} == {"sampler.onnx", "denoiser.onnx"}
    observed = np.array([0.5, 0, 0, 0.5], np.float32)
    features = policy.encode({"observation": observed[None]})["features"].numpy()
    with edge_sampler.load(bundle.folder) as inner, edge_sampler.load(out) as whole:
        states = inner.sample([3], features=features)
        expected = whole.sample([3], observation=observed)
    assert relative(policy.decode(torch.from_numpy(states)), expected) < 1e-4


def test_a_sequence_is_as_long_as_its_conditions(tmp_path: Path) -> None:
    module = example("sequence")
    model, out = module.make(), tmp_path / "mel"
    plan = edge_sampler.fit(model, FIT)
    edge_sampler.export_bundle(model, plan, out)
    assert within(compare(edge_sampler.Bundle.open(out)), 1e-4)
    with edge_sampler.load(out) as sampler:
        for length in (16, 37, 200):
            told = module.examples([0, 1], length)
            found = sampler.sample([0, 1], **told)
            noise = torch.from_numpy(edge_sampler.runtime.noise.unit_noise([0, 1], (length, 20)))
            conditions = model.encode(told)
            expected = sample(partial(asked, model, conditions), noise, plan)
            assert found.shape == (2, length, 20)
            assert relative(found, expected) < 1e-4
        for told, message in (
            (module.examples([0], 8), "text has 8 of length; this sampler takes 16 to 256"),
            (module.examples([0], 20) | {"mask": np.ones((1, 30), bool)}, "mask has 30 of length, and another"),
        ):
            with pytest.raises(UserError, match=message):
                sampler.sample([0], **told)


def test_a_sequence_is_what_eulers_steps_make_of_it(tmp_path: Path) -> None:
    """Those of Matcha-TTS and F5-TTS, from noise at t = 0 to data at 1, at three lengths by one graph."""
    module = example("sequence")
    model, out = module.make(), tmp_path / "mel"
    network: torch.nn.Module = model.model
    edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=4, solver="ddim"), out)
    with edge_sampler.load(out) as sampler:
        for length in (16, 90, 256):
            told = module.examples([0, 1], length)
            x = torch.from_numpy(edge_sampler.runtime.noise.unit_noise([0, 1], (length, 20)))
            conditions = {name: torch.from_numpy(value) for name, value in told.items()}
            for step in range(4):
                x = x + network(x, torch.tensor([step / 4]), **conditions) / 4
            assert relative(sampler.sample([0, 1], **told), x) < 1e-4


@pytest.mark.parametrize(("make", "looped", "once"), [("make", 10.2e9, 4.6e9), ("with_encoder", 38.1e9, 8.1e9)])
def test_an_action_head_computes_what_its_tokens_decide_once(make: str, looped: float, once: float) -> None:
    """FLOPs of eight evaluations by a loop on the host, at least, and of the sampler's graph, at most."""
    model = getattr(example("action_head"), make)()
    graphs, plan = export_graphs(model), edge_sampler.fit(model, nfe=8, solver="ddim")
    assert 8 * flops(graphs.denoiser, batch=1) >= looped
    assert flops(unroll(graphs.denoiser, plan), batch=1) <= once


def test_an_engine_of_any_length_is_built(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    out = str(tmp_path / "mel")
    what = ("--model", f"{EXAMPLES}/sequence.py:make", "--nfe", "2", "--solver", "ddim", "--check", "0", "--out", out)
    export(*what, "--guidance", "2", "--engine", "tensorrt-rtx", "--target", "sm89", "--axis", "length=16:32:64")
    (engine,) = edge_sampler.Bundle.open(out).engines
    assert engine.axes == {"length": (16, 32, 64)}
    for axis, message in (
        ("length=8", "takes 16 to 256"),
        ("lenght=32", "axes are length"),
        ("length=x", "MIN:OPT:MAX"),
    ):
        with pytest.raises(UserError, match=message):
            export(*what, "--force", "--engine", "tensorrt-rtx", "--axis", axis)
