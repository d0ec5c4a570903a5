"""How timings are made and summed up, with clocks and engines of our own."""

import time
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sampler.runtime import bench as benching
from edge_sampler.runtime.backends.base import Spans
from edge_sampler.runtime.bench import PERCENTILES, Timing, alternate, host_paths, median_spans, over_limit
from edge_sampler.runtime.errors import UserError


def test_a_timing_is_summed_up_in_trtexecs_terms() -> None:
    latencies = tuple(float(number) for number in range(1, 101))
    timing = Timing("p", 4, latencies, 1.5, Spans(1, 2, 3), 0)
    told = timing.summary()
    assert told["throughput_images_per_second"] == timing.throughput == pytest.approx(400 / 5050)
    assert told["latency"]["min"] == 1
    assert told["latency"]["mean"] == 50.5
    assert told["latency"]["max"] == 100
    assert [told["latency"][f"p{percent}"] for percent in PERCENTILES] == pytest.approx([50.5, 90.1, 95.05, 99.01])
    assert (told["path"], told["batch"], told["runs"], told["over_limit"]) == ("p", 4, 100, 1.5)
    assert told["spans"] == {"host_to_device": 1, "compute": 2, "device_to_host": 3}
    assert told["memory_bytes"] is None
    bare = Timing("p", 1, (1.0,), memory=7).summary()
    assert (bare["spans"], bare["memory_bytes"], bare["over_limit"]) == (None, 7, None)
    assert Timing("p", 1, (1.0,)).summary()["memory_bytes"] is None


def test_medians_are_over_runs_and_rounds() -> None:
    runs = [Spans(1, 10, 5), None, Spans(3, 30, 4), Spans(2, 90, 6)]
    assert median_spans(runs) == Spans(2, 30, 5)
    assert median_spans([None]) is median_spans([]) is None
    turns, limits = [[2.0, 3.0], [9.0], [4.0]], [[1.0], [1.0, 2.0], [4.0]]
    assert over_limit(turns, limits) == median([2.5 / 1, 9 / 1.5, 1.0]) == 2.5


def test_a_turn_lasts_so_long_and_each_run_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    times = {"a": 0.2, "b": 0.6}

    def run(name: str) -> None:
        now[0] += times[name]

    monkeypatch.setattr(time, "sleep", lambda seconds: run("a"))
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    found = alternate({name: lambda name=name: run(name) for name in times}, 2)  # type: ignore[misc]
    assert {name: [len(turn) for turn in turns] for name, turns in found.items()} == {"a": [3, 3], "b": [1, 1]}
    assert found["a"][0] == pytest.approx([0.2] * 3)


def test_the_limit_is_the_evaluations_alone() -> None:
    """On one input, without the loop's sums."""
    asked = list[Any]()
    baseline: Any = SimpleNamespace(
        encode=lambda feed: "conditions", denoise=lambda *told: asked.append(told), run=lambda feed: asked.append("run")
    )
    found = host_paths(SimpleNamespace(plan=SimpleNamespace(sigmas=(3.0, 1.0))), {"noise": "x"}, baseline)  # type: ignore[arg-type, dict-item]
    assert list(found) == ["limit", "baseline host loop"]
    found["limit"]()
    assert asked == [("x", 3.0, "conditions"), ("x", 1.0, "conditions")]
    found["baseline host loop"]()
    assert asked[2:] == ["run"]


class Counted:
    """A backend whose runs are counted."""

    def __init__(self, largest: int | None = None, memory: tuple[int, ...] = (5, 12)) -> None:
        self.name, self.open_graph, self.largest, self.memory, self.runs = "engine", None, largest, iter(memory), 0

    def used_memory(self) -> int:
        return next(self.memory)

    def open(self, bundle: Any, precision: str | None, outputs: Any) -> Any:
        return self

    largest_batch = property(lambda self: self.largest)
    description = "an engine"

    def run(self, feed: Any) -> None:
        self.runs += 1

    def spans(self, feed: Any) -> Spans:
        return Spans(1, 2, 3)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("memory", "told"), [((5, 12), 7), ((12, 5), 0)])
def test_an_engine_is_timed_without_a_loop(memory: tuple[int, ...], told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, taken, used, pace = Counted(4, memory), list[int](), list[bool](), benching.Pace(1e-9, settle=0.0)
    monkeypatch.setattr(benching, "choose", lambda *_: engine)
    monkeypatch.setattr(benching, "feed_of", lambda bundle, seeds, examples: taken.append(len(seeds)) or {})  # type: ignore[func-returns-value]

    def eager(bundle: Any, weights: str | None, on_gpu: bool) -> Any:
        used.append(on_gpu)
        raise UserError("not here")

    monkeypatch.setattr(benching, "_eager", eager)
    of: Any = SimpleNamespace(examples=lambda count: {})
    said, timings, left_out = benching.bench(of, 4, 2, pace=pace)
    assert (said, taken, used) == ("an engine", [4], [True])
    assert left_out == [
        "baseline host loop and limit: engine runs engines of whole samplers only",
        "PyTorch eager loop: not here",
    ]
    (timing,) = timings
    assert (timing.name, timing.batch, timing.spans, timing.memory, timing.over_limit) == (
        "unrolled graph", 4, Spans(1, 2, 3), told, None
    )  # fmt: skip
    assert len(timing.latencies) == 2
    engine.memory = iter(memory * 2)
    assert benching.bench(of, 1, 1, pace=pace)[1][0].batch == 1
    with pytest.raises(UserError, match="batch is 5, and the engine takes 4 at most"):
        benching.bench(of, 5, 1)
    for batch, rounds in ((0, 1), (1, 0)):
        with pytest.raises(UserError, match=f"batch is {batch} and rounds {rounds}; they must be at least 1"):
            benching.bench(of, batch, rounds)


def test_pytorchs_loop_is_the_first_that_a_package_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    offers, error = list[Any](), list[ImportError]()

    def load() -> Any:
        for one in error:
            raise one
        return lambda *told: told

    monkeypatch.setattr(benching, "entry_points", lambda group: offers if group == "edge_sampler.eager" else None)
    bundle: Any = "bundle"
    with pytest.raises(UserError, match=r"^no installed package offers it$"):
        benching._eager(bundle, "weights", True)
    offers.append(SimpleNamespace(load=load))
    made: Any = benching._eager(bundle, "weights", True)
    assert made == ("bundle", "weights", True)
    error.append(ModuleNotFoundError(name="torch"))
    with pytest.raises(UserError, match=r"^torch is not installed$"):
        benching._eager(bundle, None, False)
