"""The paths that compare runs of a bundle, and the pairs that it makes of them, on sessions that compute by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime import compare as comparing
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import Baseline, Trajectory, compare, parts, run_baseline, run_sampler, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import feed_of
from tests.runtime.small_bundles import HINT, MEASURED, PLAN, REFITTED, SEEDS, bundle, inputs_of, reference


class Session:
    """A graph's stand-in."""

    description, precision, largest_batch = "a stand-in", "fp32", None

    def __init__(self, run: Any) -> None:
        self.run, self.closed = run, 0

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed += 1


class Graphs:
    """A backend that computes what the graphs of a bundle would: a denoiser that halves."""

    def __init__(self, name: str = "graphs", plan: Plan = PLAN, error: float = 0.0, inner: bool = True) -> None:
        self.name, self.plan, self.error = name, plan, error
        self.open_graph: Any = self._graph if inner else None
        self.sessions, self.asked = list[Session](), list[Sequence[str]]()

    def _session(self, run: Any) -> Session:
        self.sessions.append(Session(run))
        return self.sessions[-1]

    def open(self, bundle: Bundle, precision: str | None, outputs: Sequence[str]) -> Session:
        self.asked.append(outputs)

        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            noise, (a, b, c) = feed["noise"], self.plan.table
            first = 0.5 * a[0] * noise
            second = 0.5 * (b[0] * noise + b[1] * first)
            made = c[0] * noise + c[1] * first + c[2] * second + self.error
            named = {"denoised_0": first, "denoised_1": second, "samples": made}
            return {name: np.float32(named[name]) for name in (*outputs, "samples")}

        session = self._session(run)
        session.precision = precision or "fp32"
        return session

    def _graph(self, bundle: Bundle, file: str) -> Session:
        def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            if file == "encoder.onnx":
                return {"seen": 2 * feed["hint"]}
            if file == "decoder.onnx":
                return {"samples": feed["x"] + np.float32(1)}
            assert feed["sigma"].shape == ()
            return {"denoised": np.float32(0.5 * feed["x"] + np.mean(feed.get("seen", 0)))}

        return self._session(run)


def feed(found: Bundle, count: int = 2) -> dict[str, np.ndarray]:
    return feed_of(found, range(count), found.examples(count))


def test_the_loop_and_the_graph_agree_evaluation_by_evaluation(tmp_path: Path) -> None:
    found, backend = bundle(tmp_path), Graphs()
    graph = run_sampler(found, feed(found), backend, None)  # type: ignore[arg-type]
    loop = run_baseline(found, feed(found), backend.open_graph, PLAN)
    assert backend.asked == [["denoised_0", "denoised_1"]]
    assert [session.closed for session in backend.sessions] == [1, 1]
    assert graph.denoised is not None
    assert loop.denoised is not None
    assert graph.denoised.shape == (2, 2, 2, 3)
    np.testing.assert_allclose(graph.denoised, loop.denoised, rtol=1e-6)
    np.testing.assert_allclose(graph.made, loop.made, rtol=1e-6)
    noise = unit_noise(range(2), (2, 3))
    np.testing.assert_allclose(loop.made, 0.25 * noise + 0.25 * noise + 0.5 * (0.5 * noise + 0.25 * noise), rtol=1e-6)
    assert (graph.tolerance, graph.plan, graph.precision) == (1e-4, PLAN, "fp32")


def test_stages_stand_around_the_loop(tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **reference(input_hint=np.ones((2, 2), np.float32)))
    found = bundle(
        tmp_path,
        inputs_of(2, 3, hint=HINT),
        files=("encoder.onnx", "decoder.onnx"),
        stages=["encoder", "decoder"],
        model={"raw": {"hint": HINT}, "inputs": inputs_of(2, 3)},
    )
    backend, answers, noise = Graphs(), list[np.ndarray](), unit_noise(range(2), (2, 3))
    with Baseline(found, backend.open_graph, PLAN) as baseline:
        assert baseline.encode(feed(found)).keys() == {"seen"}
        assert baseline.encode({**feed(found), "a": noise, "z": noise}).keys() == {"a", "z", "seen"}
        made = baseline.run(feed(found), answers.append)
    np.testing.assert_allclose(answers[0], noise + 2, rtol=1e-6)
    expected = 0.25 * noise + 0.25 * answers[0] + 0.5 * answers[1] + 1
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    assert [session.closed for session in backend.sessions] == [1, 1, 1]


def test_a_path_of_many_samples_runs_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing, "usual_batch", lambda shape: 2)
    found, backend = bundle(tmp_path), Graphs()
    whole = feed(found, 5)
    assert [len(part["noise"]) for part in parts(whole)] == [2, 2, 1]
    graph = run_sampler(found, whole, backend, None)  # type: ignore[arg-type]
    loop = run_baseline(found, whole, backend.open_graph, PLAN)
    np.testing.assert_allclose(graph.made, loop.made, rtol=1e-6)
    assert graph.made.shape == (5, 2, 3)


def chosen(monkeypatch: pytest.MonkeyPatch, *backends: Graphs) -> list[str]:
    named = {backend.name: backend for backend in backends}
    monkeypatch.setattr(comparing, "choose", lambda bundle, name, precision: named[name])
    return list(named)


def pairs(found: list[Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one.first, one.second) for one in found))


def test_every_pair_of_paths_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = bundle(tmp_path)
    made = run_baseline(bare, feed_of(bare, SEEDS, {}), Graphs().open_graph, PLAN)
    assert made.denoised is not None
    np.savez(tmp_path / "reference.npz", **reference(made=made.made, denoised=made.denoised))
    found = bundle(tmp_path)
    names = chosen(monkeypatch, Graphs("one"), Graphs("two", error=0.5), Graphs("engine", inner=False))
    told = compare(found, None, names)
    assert pairs(told) == [
        ("one", "two"), ("one", "engine"), ("one", "baseline loop"), ("one", "PyTorch"), ("two", "engine"),
        ("two", "baseline loop"), ("two", "PyTorch"), ("engine", "baseline loop"), ("engine", "PyTorch"),
        ("baseline loop", "PyTorch"),
    ]  # fmt: skip
    stages = [one.stage for one in told if (one.first, one.second) == ("one", "PyTorch")]
    assert stages == ["denoised 0", "denoised 1", "samples"]
    assert [one.stage for one in told if one.first == "engine"] == ["samples"] * 2
    off = [one for one in told if one.max > 0.1]
    assert {(one.first, one.second, one.stage) for one in off} == {
        ("one", "two", "samples"), ("two", "engine", "samples"), ("two", "baseline loop", "samples"),
        ("two", "PyTorch", "samples"),
    }  # fmt: skip
    assert all(one.max == pytest.approx(0.5, 1e-4) == one.rms == one.median for one in off)
    assert off[0].relative == pytest.approx(0.5 / np.abs(made.made + 0.5).max(), 1e-4)
    assert pairs(compare(found, [1, 2], names[:1])) == [("one", "baseline loop")]


def test_plans_that_differ_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch ran plan.json, and two precisions of one were refitted."""
    REFITTED.save(tmp_path / "plan-int8.json")
    np.savez(tmp_path / "reference.npz", **reference())
    precisions = {"int8": MEASURED | {"plan_sha256": REFITTED.sha256}}
    found = bundle(tmp_path, files=("sampler-int8.onnx",), precisions=precisions)
    names = chosen(monkeypatch, Graphs("low", REFITTED), Graphs("engine", REFITTED, inner=False))
    told = compare(found, None, names[:1], "int8")
    assert pairs(told) == [("low", "baseline loop")]
    assert within(told, None)
    assert [one.expected for one in told] == pytest.approx([0.3] * 3)
    with pytest.raises(UserError, match=r"nothing to compare with: .*; PyTorch's recorded output is of plan.json"):
        compare(found, None, names[1:], "int8")
    with pytest.raises(UserError, match=r"nothing to compare with: leave --seeds out, or name another backend$"):
        compare(found, [1], names[1:], "int8")

    def own(found: Bundle, feed: object, backend: Any, precision: object) -> Trajectory:
        return Trajectory({"low": PLAN, "engine": REFITTED}[backend.name], None, np.zeros(1), 0.0)

    monkeypatch.setattr(comparing, "run_sampler", own)
    with pytest.raises(UserError, match="low and engine run precisions with different plans"):
        compare(found, [1], names)


def test_pixels_are_compared_as_floats_and_rounding_is_let_pass(tmp_path: Path) -> None:
    output = {"name": "images", "shape": [1, 2, 2], "units": ""}
    found = bundle(tmp_path, inputs_of(1, 2, 2), dtype="uint8", output=output)

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"images": np.full((2, 2, 2, 1), 255, np.uint8), "images_float32": np.ones((2, 1, 2, 2), np.float32)}

    engine = SimpleNamespace(open_graph=None, open=lambda *_: Session(run))
    made = run_sampler(found, feed(found), engine, None)  # type: ignore[arg-type]
    np.testing.assert_array_equal(made.made, np.ones((2, 1, 2, 2)))
    assert made.tolerance == pytest.approx(1e-4 + 0.5 / 127.5)
    assert made.denoised is None
    asked = list[Any]()

    def inner(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**run(feed), **{f"denoised_{k}": feed["noise"] for k in range(2)}}

    graph = SimpleNamespace(open_graph=run, open=lambda *told: asked.extend(told[2]) or Session(inner))  # type: ignore[func-returns-value]
    made = run_sampler(found, feed(found), graph, None)  # type: ignore[arg-type]
    assert asked == ["denoised_0", "denoised_1", "images_float32"]
    assert made.tolerance == 1e-4  # of values that were not rounded


@pytest.mark.parametrize(
    ("first", "second", "finite", "relative"),
    [
        ([1.0, 2.0], [1.0, 4.0], True, 0.5),
        ([1.0, np.nan], [1.0, 4.0], False, np.nan),
        ([1.0, 2.0], [np.inf, 4.0], False, np.nan),
        ([0.0, 0.0], [0.0, 0.0], True, 0.0),  # nothing is not far from nothing
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_difference_is_of_two_paths(first: list[float], second: list[float], finite: bool, relative: float) -> None:
    a, b = (Trajectory(PLAN, None, np.array([[made]], np.float32), 1e-4) for made in (first, second))
    (found,) = comparing._differences("images", "a", a, "b", b)
    assert found.finite == finite
    np.testing.assert_equal(found.relative, relative)
    assert within([found], 0.5) == (finite and relative <= 0.5)


def test_a_large_sample_runs_alone() -> None:
    assert [len(part["noise"]) for part in parts({"noise": np.zeros((3, 3, 300, 300), np.float32)})] == [1, 1, 1]


def test_an_inner_value_of_another_shape_is_told(tmp_path: Path) -> None:
    found, graphs = bundle(tmp_path), Graphs()
    with_shape = graphs.open

    def open_(*told: Any) -> Session:
        session = with_shape(*told)
        run = session.run
        session.run = lambda feed: {**run(feed), "denoised_1": np.zeros((2, 9), np.float32)}
        return session

    graphs.open = open_  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match=r"a stand-in makes denoised_1 float32 \[2, 9\], not float32 \[2, 2, 3\]"):
        run_sampler(found, feed(found), graphs, None)  # type: ignore[arg-type]
