"""The examples, as a user runs them, with fewer noises. Those that tutorials run are tests/test_tutorials.py's."""

import importlib.util
import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import edge_sampler
from edge_sampler.calibration.solvers.base import base_step
from edge_sampler.export.assemble import Graphs, export_graphs, write_graphs
from edge_sampler.export.unroll import unroll
from edge_sampler.models.python_file import neighbours_first
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.command_line import run_command
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample
from tests.conftest import export, relative, run_main
from tests.export.test_conditions import flops

EXAMPLES = Path(__file__).parent.parent / "examples"
FIT = edge_sampler.Settings(4, fit_batch=16, heldout=8)


def asked(
    model: edge_sampler.Denoiser, conditions: dict[str, torch.Tensor], x: torch.Tensor, sigma: float
) -> torch.Tensor:
    denoised: torch.Tensor = model(x, sigma, **conditions)
    return denoised


def example(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with neighbours_first(path.parent):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def policy() -> edge_sampler.Denoiser:
    made: edge_sampler.Denoiser = example("policy/model").make(iterations=20)
    return made


@pytest.fixture(scope="module")
def policy_graphs(policy: edge_sampler.Denoiser) -> Graphs:
    return export_graphs(policy)


@pytest.fixture(scope="module")
def policy_bundle(
    policy: edge_sampler.Denoiser, policy_graphs: Graphs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[edge_sampler.Plan, Path]:
    plan, out = edge_sampler.fit(policy, FIT), tmp_path_factory.mktemp("policy") / "bundle"
    edge_sampler.export_bundle(policy, plan, out, graphs=policy_graphs)
    return plan, out


@pytest.fixture(scope="module")
def sequence() -> tuple[ModuleType, edge_sampler.Denoiser, Graphs]:
    module = example("sequence")
    model = module.make()
    return module, model, export_graphs(model)


def test_a_policy_makes_the_actions_of_its_observation(
    policy: edge_sampler.Denoiser, policy_bundle: tuple[edge_sampler.Plan, Path]
) -> None:
    plan, out = policy_bundle
    bundle = edge_sampler.Bundle.open(out)
    assert within(compare(bundle), 1e-4)
    assert (bundle.output.name, bundle.output.units) == ("actions", "m")
    assert list(bundle.inputs.conditions) == ["observation"]
    assert plan.report
    assert plan.report.examples == (384, 128)
    observed = np.array([[-1, 0, -1, 0, 1, 0, 0, 0], [0, 1, 0, 1, 1, -1, 0, 0]], np.float32)
    with edge_sampler.load(out) as sampler:
        actions = sampler.sample([5, 6], observation=observed)
    told = policy.encode({"observation": observed})
    noise = torch.from_numpy(edge_sampler.runtime.noise.unit_noise([5, 6], (16, 2)))
    expected = policy.decode(sample(lambda x, sigma: policy(x, sigma, **told), noise, plan))
    assert relative(actions, expected) < 1e-4
    assert relative(actions[0], actions[1]) > 0.1


def test_a_policy_runs_in_the_control_loop_without_pytorch(policy_bundle: tuple[edge_sampler.Plan, Path]) -> None:
    """As a robot has it: whoever imports PyTorch fails."""
    run = "import runpy, sys; sys.modules['torch'] = None; runpy.run_path(sys.argv[0], run_name='__main__')"
    control, environment = EXAMPLES / "policy", os.environ | {"PYTHONPATH": str(EXAMPLES / "policy")}

    def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
        told = f"import sys; sys.argv = {[str(control / 'control.py'), *arguments]!r}; {run}"
        return subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True)

    done = ran(str(policy_bundle[1]), "--episodes", "2", "--rate", "500", "--backend", "onnxrt")
    assert done.returncode == 0, done.stderr
    assert re.search(r"holds [\d.]+ of 500 Hz: \d+ of \d+ periods were late\n.* in [012] of 2 episodes", done.stdout)
    for arguments, message in (
        (["--rate", "0"], "--rate is 0.0; it must be"),
        (["--episodes", "0"], "--episodes is 0"),
    ):
        refused = ran(str(policy_bundle[1]), *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert message in refused.stderr


def test_a_control_loop_counts_the_periods_that_it_misses() -> None:
    clock = example("policy/control").Clock(rate=20)
    for work in (0.0, 0.2, 0.0, 0.0):  # seconds, of 0.05
        time.sleep(work)
        clock.wait()
    assert clock.late == 1
    assert 4 / 0.5 < clock.held < 4 / 0.34  # three periods of 0.05 s and one of 0.2 s


def test_the_obstacle_has_to_be_passed_and_can_be_on_both_sides() -> None:
    task = example("policy/task")

    def straight(observation: np.ndarray, period: int) -> np.ndarray:
        return np.repeat(observation[:, None, 4:6], task.CHUNK, 1)

    def round_it(observation: np.ndarray, period: int) -> np.ndarray:
        """Above the obstacle until it is passed, then to the goal."""
        above = observation[:, 6:] + [0.0, 0.4]
        passed = observation[:, 2:3] > observation[:, 6:7] - 0.1
        return np.repeat(np.where(passed, observation[:, 4:6], above)[:, None], task.CHUNK, 1)

    assert task.episodes(straight, 200)[0].mean() < 0.05
    reached, left = task.episodes(round_it, 200)
    assert reached.mean() > 0.5
    assert left.all()
    assert not task.episodes(lambda observation, period: np.zeros((200, 16, 2)) - 2.0, 200)[0].any()
    observed, actions = task.demonstrations(200, np.random.default_rng(0))
    assert observed.shape == (8000, 8)
    assert actions.shape == (8000, 16, 2)
    beside = actions[:200, -1] - observed[:200, 6:]  # sixteen periods from the start, the obstacle is beside the path
    assert 0.4 < (beside[:, 1] > 0).mean() < 0.6
    assert (np.linalg.norm(observed[:, 2:4] - observed[:, 6:], axis=-1) > task.RADIUS).mean() > 0.99


def test_the_table_says_how_sure_it_is() -> None:
    """Wilson's interval: against its textbook values for 10 of 10 and 50 of 100."""
    table = example("policy/table")
    assert table.interval(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-3)
    assert table.interval(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-3)


def test_the_table_has_a_row_for_each_sampler(tmp_path: Path) -> None:
    """DDIM starts at a higher noise level than the fitted ones, as lerobot's does."""
    table = example("policy/table")
    made = table.rows(tmp_path, 2, fitted=(2,), ddim=(3, 50))
    assert [(row.name, row.nfe) for row in made] == [
        ("fitted", 2),
        *(("DDIM with clip_sample", nfe) for nfe in (3, 50)),
    ]
    for row in made:
        table.judge(row, 4)
        assert 0 <= row.succeeded <= 1
        assert "nan" not in row.line(4)
    assert made[2].sampler.bundle.plan.sigmas[0] > made[0].sampler.bundle.plan.sigmas[0]


def test_the_stages_may_be_left_to_the_caller(
    policy: edge_sampler.Denoiser,
    policy_graphs: Graphs,
    policy_bundle: tuple[edge_sampler.Plan, Path],
    tmp_path: Path,
) -> None:
    plan, out = policy_bundle
    form = edge_sampler.Form(encode=False, decode=False)
    edge_sampler.export_bundle(policy, plan, tmp_path / "bare", form, graphs=policy_graphs)
    bundle = edge_sampler.Bundle.open(tmp_path / "bare")
    assert within(compare(bundle), 1e-4)
    assert {path.name for path in bundle.folder.glob("*.onnx")} == {"sampler.onnx", "denoiser.onnx"}
    observed = np.array([-1, 0, -1, 0, 1, 0.5, 0, 0.2], np.float32)
    features = policy.encode({"observation": observed[None]})["features"].numpy()
    with edge_sampler.load(bundle.folder) as inner, edge_sampler.load(out) as whole:
        states = inner.sample([3], features=features)
        expected = whole.sample([3], observation=observed)
    assert relative(policy.decode(torch.from_numpy(states)), expected) < 1e-4


def test_a_sequence_is_as_long_as_its_conditions(
    sequence: tuple[ModuleType, edge_sampler.Denoiser, Graphs], tmp_path: Path
) -> None:
    (module, model, graphs), out = sequence, tmp_path / "mel"
    plan = edge_sampler.fit(model, FIT)
    edge_sampler.export_bundle(model, plan, out, graphs=graphs)
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


def test_a_sequence_is_what_eulers_steps_make_of_it(sequence: tuple[ModuleType, Any, Graphs], tmp_path: Path) -> None:
    """Those of Matcha-TTS and F5-TTS, from noise at t = 0 to data at 1, at three lengths by one graph."""
    (module, model, graphs), out = sequence, tmp_path / "mel"
    network: torch.nn.Module = model.model
    edge_sampler.export_bundle(model, edge_sampler.fit(model, nfe=4, solver="ddim"), out, graphs=graphs)
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


class Buckets(torch.nn.Module):
    """An action head as GR00T has it: told whole steps from 0, which is noise, to 1000, and predicting data - noise."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor, step: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return -self.head(x, step.round().long() / 1000, tokens)


@pytest.mark.parametrize("form", ["smolvla", "gr00t"])
def test_action_heads_are_sampled_as_their_own_loops_do(form: str, tmp_path: Path) -> None:
    """Euler's steps as π0 and SmolVLA write them, from t = 1 to 0, and GR00T's, from 0 to 1 in whole thousandths."""
    module, nfe = example("action_head"), 4
    vars(module).update(TOKENS=8, TOLD=16, WIDTH=32, LAYERS=2, HEADS=4)
    model = module.make()
    head = model.model
    if form == "gr00t":
        head, told = Buckets(model.model), {"conditions": model.spec.inputs.conditions, "examples": model.examples}
        model = edge_sampler.adapt(
            head, model.spec.shape, "FlowPrecond", reversed_time=True, predicts="data-noise", output="actions", **told
        )
    noise, tokens = torch.randn(3, 17, 7), torch.randn(3, 8, 16)
    x = noise
    with torch.inference_mode():
        for k in range(nfe):
            if form == "smolvla":
                x = x + -1 / nfe * head(x, torch.full((3,), 1 - k / nfe), tokens)
            else:
                x = x + 1 / nfe * head(x, torch.full((3,), int(1000 * k / nfe)).float(), tokens)
    plan = edge_sampler.fit(model, nfe=nfe, solver="ddim")
    write_graphs(export_graphs(model), plan, tmp_path)
    with Session(tmp_path / "sampler.onnx") as session:
        (found,) = session.run({"noise": noise.numpy(), "tokens": tokens.numpy()}).values()
    assert relative(found, x) < 1e-4


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


def test_a_solver_of_ones_own_is_exact_where_it_should_be() -> None:
    """Two-step Adams-Bashforth: of slopes that are linear in σ, after its first step and before its last."""
    solver, sigmas, states = example("solver").AB2, [10.0, 7.0, 3.0, 1.0, 0.4, 0.0], []

    def denoise(x: np.ndarray, sigma: float) -> np.ndarray:
        states.append(x)
        return x - sigma * (2 * sigma - 5)

    solver.run(denoise, np.array([4.0]), sigmas, base_step, 0)
    moved = np.diff(np.concatenate(states))
    exact = np.diff([sigma**2 - 5 * sigma for sigma in sigmas[:-1]])
    np.testing.assert_allclose(moved[1:], exact[1:])
    assert abs(moved[0] - exact[0]) > 1  # Euler's


def test_a_solver_of_ones_own_is_judged_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_main(example("solver").main, "--nfe", "3", "--noises", "4", "--out", str(tmp_path / "ab2.json"))
    errors = dict(re.findall(r"^([\w-]+) +([\d.]+)$", capsys.readouterr().out, re.MULTILINE))
    assert list(errors) == ["ab2", "ddim", "dpmpp-2m", "ipndm"]
    assert len(set(errors.values())) == 4
    plan = edge_sampler.Plan.load(tmp_path / "ab2.json")
    assert (plan.solver, plan.nfe) == ("ab2", 3)


def test_the_gate_lets_through_what_is_whole_right_and_fast(
    made: Path, copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = example("gate")

    def status(folder: Path, milliseconds: str) -> int:
        with pytest.raises(SystemExit) as stopped:
            run_main(lambda: run_command(gate.main), str(folder), "--milliseconds", milliseconds, "--runs", "3")
        return int(str(stopped.value.code))

    assert status(made, "60000") == 0
    assert re.search("^whole: .*\nright: .*\nfast: ", capsys.readouterr().out)
    assert status(made, "0.001") == 1
    assert "\nSLOW: " in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(gate, "within", lambda found, tolerance: False)
        assert status(made, "60000") == 1
    assert "\nWRONG: " in capsys.readouterr().out
    (copy / "samples.png").write_bytes(b"")
    assert status(copy, "60000") == 2
    assert "samples.png" in capsys.readouterr().err
