"""Bundles that no exporter made: what they tell, how their files are held against it, and what paths run of them."""

import hashlib
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
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import feed_of
from edge_sampler.runtime.verified import PIECE, WEIGHTS, describe_files, file_sha256, weights_beside
from tests.bundles import facts

PLAN = Plan("ddim", (2.0, 1.0), ((2.0,), (1.0, 0.5), (0.25, 0.25, 0.5)))
REFITTED = Plan("ddim", (2.0, 1.0), ((2.0,), (1.0, 0.6), (0.25, 0.25, 0.5)))
CLASSES: dict[str, Any] = {"shape": [], "dtype": "int64", "null": None, "choices": 3, "description": ""}
HINT = {"shape": [2], "dtype": "float32", "null": None, "choices": 0, "description": ""}
TEXT = {**HINT, "dtype": "int64", "text": {"file": "t.json", "default": "", "follows": ""}}
MEASURED = {"samples": 4, "rms_error": 0.01, "largest_error": 0.3, "relative_error": 0.1}
SEEDS = [5, 3]


def inputs_of(*shape: int, **conditions: Any) -> dict[str, Any]:
    return {"shape": list(shape), "conditions": conditions, "axes": {}}


def bundle(
    folder: Path, inputs: dict[str, Any] | None = None, plan: Plan = PLAN, files: Sequence[str] = (), **change: Any
) -> Bundle:
    """Its files but the plan's and the reference's say their names; ``change`` of the manifest."""
    inputs = inputs or inputs_of(2, 3)
    plan.save(folder / "plan.json")
    for name in ("sampler.onnx", "denoiser.onnx", *files):
        (folder / name).write_text(name)
    output = change.pop("output", {"name": "samples", "shape": inputs["shape"], "units": ""})
    told = facts(inputs, output) | {"nfe": plan.nfe, "plan_sha256": plan.sha256}
    told["model"] |= change.pop("model", {})
    write_manifest(folder / MANIFEST, told | change, describe_files(folder))
    return Bundle.open(folder)


def damage(folder: Path, **given: Any) -> str:
    with pytest.raises(UserError, match=r"manifest\.json is damaged: ") as raised:
        bundle(folder, **given)
    return str(raised.value).partition(": ")[2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"inputs": inputs_of()}, "a sample's shape is empty"),
        ({"model": {"inputs": inputs_of()}}, "a sample's shape is empty"),
        ({"output": {"name": "samples", "shape": [0], "units": ""}}, "a shape has the size 0"),
        ({"dtype": "uint8"}, r"samples [2, 3] are no pictures, and uint8"),
        ({"stages": ["decoder"]}, "it names decoder.onnx, which is not among its files"),
        ({"precisions": {"fp16": MEASURED}}, "it names sampler-fp16.onnx, which"),
        (
            {"stages": ["encoder"], "files": ["encoder.onnx"], "model": {"raw": {"prompt": HINT}}},
            "its encoder takes prompt, which the sampler is not given",
        ),
        ({"inputs": inputs_of(2, text=TEXT)}, "it names t.json, which"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert damage(tmp_path, **given).startswith(told)


def test_what_does_not_contradict_itself_opens(tmp_path: Path) -> None:
    found = bundle(
        tmp_path,
        inputs_of(3, 4, 4, hint=HINT, class_labels=CLASSES),
        files=("encoder.onnx", "sampler-fp16.onnx"),
        dtype="uint8",
        stages=["encoder"],
        precisions={"fp16": MEASURED},
        model={"raw": {"hint": HINT}, "random_weights": True},
    )
    assert (found.inner_output, found.dtype, found.random_weights) == ("images_float32", "uint8", True)
    assert (found.graph_name(), found.graph_name("fp32"), found.graph_name("fp16")) == (
        "sampler.onnx",
        "sampler.onnx",
        "sampler-fp16.onnx",
    )
    assert found.engines == ()
    assert found.tolerance("fp16") == pytest.approx(0.3)
    assert found.rms_tolerance("fp16") == pytest.approx(0.03)
    assert (found.tolerance(), found.rms_tolerance()) == (1e-4, np.inf)


def test_a_precision_that_was_refitted_has_a_plan_of_its_own(tmp_path: Path) -> None:
    REFITTED.save(tmp_path / "plan-int8.json")
    told = {"int8": MEASURED | {"plan_sha256": REFITTED.sha256}, "fp16": MEASURED}
    found = bundle(tmp_path, files=("sampler-int8.onnx", "sampler-fp16.onnx"), precisions=told)
    assert found.plan == found.plan_of(None) == found.plan_of("fp32") == found.plan_of("fp16") == PLAN
    assert found.plan_of("int8") == REFITTED
    wrong = bundle(
        tmp_path,
        files=("sampler-int8.onnx", "sampler-fp16.onnx"),
        precisions={**told, "int8": MEASURED | {"plan_sha256": PLAN.sha256}},
    )
    with pytest.raises(UserError, match=r"plan-int8\.json is not the plan of sampler-int8\.onnx: export it again"):
        wrong.plan_of("int8")


def test_a_plans_mean_is_of_the_loops_shape(tmp_path: Path) -> None:
    mean = Plan("ddim", (1.0,), ((1.0, 0.0), (0.5, 0.5, 0.0)), mean=((0.0,) * 3,) * 2)
    assert bundle(tmp_path, plan=mean).plan == mean
    with pytest.raises(UserError, match=r"is damaged: its mean is \[2, 3\], of data \[3, 2\]"):
        _ = bundle(tmp_path, inputs_of(3, 2), plan=mean).plan


def reference(**change: Any) -> dict[str, Any]:
    """Of two evaluations of two samples."""
    made = {"seeds": np.array(SEEDS), "denoised": np.zeros((2, 2, 2, 3), np.float32)}
    return {**made, "made": np.zeros((2, 2, 3), np.float32), **change}


def test_the_reference_is_taken_as_pytorch_computed_it(tmp_path: Path) -> None:
    stored = reference(input_hint=np.arange(4, dtype=np.float32).reshape(2, 2))
    np.savez(tmp_path / "reference.npz", **stored)
    found = bundle(tmp_path, inputs_of(2, 3, hint=HINT)).reference()
    assert found.keys() == stored.keys()
    assert all((found[name] == stored[name]).all() for name in stored)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seeds": np.array([1.0, 2.0])}, r"its seeds are float64 \[2\]"),
        ({"seeds": np.array([-1, 2])}, r"its seeds are int64 \[2\]"),
        ({"seeds": np.array([[1, 2]])}, r"its seeds are int64 \[1, 2\]"),
        ({"seeds": np.zeros(0, np.int64)}, r"its seeds are int64 \[0\]"),
        ({"made": np.zeros((2, 3, 2), np.float32)}, r"made is float32 \[2, 3, 2\], not float32 \[2, 2, 3\]"),
        ({"made": np.zeros((2, 2, 3))}, r"made is float64"),
        ({"denoised": np.zeros((1, 2, 2, 3), np.float32)}, r"denoised is float32 \[1, 2, 2, 3\], not float32 \[2, 2,"),
    ],
)
def test_a_reference_of_something_else_is_damaged(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "reference.npz", **reference(**change))
    with pytest.raises(UserError, match=rf"reference\.npz is damaged: {told}.*: export the bundle again"):
        bundle(tmp_path).reference()


def test_examples_are_classes_in_turn_and_what_was_recorded_in_turn(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "reference.npz",
        **reference(input_hint=np.eye(2, dtype=np.float32), input_class_labels=np.array([0, 1])),
    )
    found = bundle(tmp_path, inputs_of(2, 3, class_labels=CLASSES, hint=HINT)).examples(5)
    assert found["class_labels"].tolist() == [0, 1, 2, 0, 1]
    assert found["class_labels"].dtype == np.int64
    assert found["hint"].argmax(1).tolist() == [0, 1, 0, 1, 0]
    (tmp_path / "reference.npz").unlink()
    assert bundle(tmp_path, inputs_of(2, 3, class_labels=CLASSES)).examples(2).keys() == {"class_labels"}


def test_a_file_is_verified_before_it_is_read(tmp_path: Path) -> None:
    found = bundle(tmp_path)
    assert found.file("sampler.onnx") == tmp_path / "sampler.onnx"
    assert found.read("sampler.onnx") == b"sampler.onnx"
    for wrong in ("sampler.onny", "sampler.onnx ", ""):
        (tmp_path / "sampler.onnx").write_text(wrong)
        for use in (found.file, found.read, found.graph):
            with pytest.raises(UserError, match=r"sampler\.onnx is not the file the manifest describes"):
                use("sampler.onnx")
    with pytest.raises(UserError, match=r"holds no decoder\.onnx"):
        found.file("decoder.onnx")
    (tmp_path / "plan.json").unlink()
    with pytest.raises(UserError, match=r"plan\.json is missing, though the manifest lists it"):
        found.file("plan.json")


@pytest.mark.parametrize("weights", ["sampler.onnx.data", WEIGHTS])
def test_a_graphs_weights_are_verified_with_it(weights: str, tmp_path: Path) -> None:
    found = bundle(tmp_path, files=(weights,))
    assert found.graph("sampler.onnx") == tmp_path / "sampler.onnx"
    (tmp_path / weights).write_text("other")
    with pytest.raises(UserError, match=f"{weights} is not the file the manifest describes"):
        found.graph("sampler.onnx")
    assert weights in {path.name for path in weights_beside(tmp_path / "sampler.onnx")}
    assert {path.parent for path in weights_beside(tmp_path / "sampler.onnx")} == {tmp_path}


def test_all_files_but_the_manifest_are_described(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    content = bytes(range(256)) * (PIECE // 256) + b"more"
    (tmp_path / "engines" / "a").write_bytes(content)
    for name in ("b", MANIFEST, f"{MANIFEST}.minisig"):
        (tmp_path / name).write_text(name)
    found = describe_files(tmp_path)
    assert list(found) == ["b", "engines/a"]
    assert found["engines/a"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert file_sha256(tmp_path / "b") == hashlib.sha256(b"b").hexdigest()


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
