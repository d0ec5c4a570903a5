"""A model that is served, on a session that remembers: when it is ready, and what it makes of rows."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.condition import CLASSES, Axis, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.noise import SEEDS, noise_of
from edge_sampler.runtime.serve import model as module
from edge_sampler.runtime.serve.model import Model, RunError
from edge_sampler.runtime.serve.protocol import Asked, Tensor
from edge_sampler.runtime.text import Text

INPUTS = Inputs(
    (2, "T"),
    {
        "mask": Condition(("T",), "bool", description="what counts"),
        CLASSES: Condition((), "int64", choices=3),
        "prompt": Condition((2,), "int64", text=Text("t.json", default="")),
    },
    {"T": Axis(1, 3, 5)},
)


def bundle(**change: Any) -> Any:
    told = {
        "inputs": INPUTS, "output": Output("made", (2, "T")), "inner_output": "made", "dtype": "float32",
        "random_weights": False, "temperature": 0.5, "tokenized": lambda given: {"prompt": [0, 0], **given},
    }  # fmt: skip
    return SimpleNamespace(**{**told, **change})


def pictures() -> Any:
    return bundle(output=Output("images", (3, 4, 5)), inner_output="images_float32", dtype="uint8")


class Session:
    description, largest_batch = "remembers", None

    def __init__(self, largest: int | None = None, fails: int = 0) -> None:
        self.largest_batch, self.fails, self.sizes, self.closed = largest, fails, list[int](), 0

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.sizes.append(len(feed["noise"]))
        if self.sizes[-1] == self.fails:
            raise UserError("out of memory")
        return {"made": feed["noise"]}

    def __exit__(self, *_: object) -> None:
        self.closed += 1


def started(
    monkeypatch: pytest.MonkeyPatch, session: Session, batch: int | None = None, of: Any = None
) -> tuple[Model, list[Any]]:
    """A model that was loaded, and what its session was asked for."""
    asked = list[Any]()
    backend = SimpleNamespace(inner_values=True, gpu=False, open=lambda *told: asked.append(told[1:]) or session)  # type: ignore[func-returns-value]
    monkeypatch.setattr(module, "choose", lambda bundle, name, precision: backend)
    monkeypatch.setattr(module, "made_of", lambda bundle, feed, made: made["made"])
    made = Model(of or bundle(), "m", 6, 0.0)
    assert not made.ready

    async def start() -> None:
        try:
            (await made.start("auto", "fp16", batch)).cancel()
        finally:
            await made.close()

    asyncio.run(start())
    return made, asked


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    return started(monkeypatch, Session())[0]


@pytest.mark.parametrize(
    ("largest", "batch", "sizes"),
    [(None, None, [16, 1]), (8, None, [8, 1]), (8, 8, [8, 1]), (8, 3, [3, 1]), (1, None, [1])],
)
def test_it_is_ready_once_it_made_the_usual_batch_and_one(
    largest: int | None, batch: int | None, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(largest)
    made, asked = started(monkeypatch, session, batch)
    assert made.ready
    assert (session.sizes, session.closed, made.description) == (sizes, 1, "remembers")
    assert asked == [("fp16", ())]


def test_what_it_cannot_make_is_told_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--batch is 9, and the engine of m takes 8 at most"):
        started(monkeypatch, Session(8), 9)
    for fails in (16, 1):
        session = Session(fails=fails)
        with pytest.raises(UserError, match=f"m cannot make {fails} at once: out of memory"):
            started(monkeypatch, session)
        assert session.closed == 1


def test_float_values_of_pictures_are_fetched_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    _, asked = started(monkeypatch, Session(), of=pictures())
    assert asked == [("fp16", ("images_float32",))]


def run(made: Model, seen: np.ndarray, rows: int = 2, monkeypatch: pytest.MonkeyPatch | None = None) -> list[Any]:
    made._session = SimpleNamespace(run=lambda feed: {"made": seen})
    return made._run([made._blank()] * rows)


def test_a_sample_of_no_numbers_is_an_error_of_its_own(model: Model) -> None:
    seen = np.zeros((2, 2, 3), np.float32)
    seen[1, 0, 0] = np.nan
    first, second = run(model, seen)
    np.testing.assert_array_equal(first, seen[0])
    assert isinstance(second, RunError)
    assert str(second) == "the model made NaN or infinity of seed 0"
    model._session = SimpleNamespace(run=lambda feed: {"made": seen[1:]})
    (only,) = model._run([replace(model._blank(), start=np.zeros((2, 3), np.float32))])
    assert str(only) == "the model made NaN or infinity of this noise"


def test_a_seeds_noise_is_scaled_as_the_sampler_was_fitted_and_a_given_noise_is_not(model: Model) -> None:
    model._session = SimpleNamespace(run=lambda feed: {"made": feed["noise"]})
    seed, given = replace(model._blank(), start=7), replace(model._blank(), start=np.ones((2, 3), np.float32))
    first, second = model._run([seed, given])
    np.testing.assert_array_equal(first, noise_of([7], (2, 3), 0.5)[0])
    np.testing.assert_array_equal(second, np.ones((2, 3)))


def seeds(*numbers: int, datatype: str = "INT64") -> Tensor:
    return Tensor(datatype, np.array(numbers))


def rows(model: Model, inputs: Mapping[str, Tensor], **parameters: Any) -> Any:
    given = {"mask": Tensor("BOOL", np.ones((1, 4), bool)), CLASSES: Tensor("INT64", np.array([2])), **inputs}
    return model.rows_of(Asked(None, {k: v for k, v in given.items() if v}, {}, False, parameters))


def test_a_row_is_a_seed_or_a_noise_and_its_conditions(model: Model) -> None:
    (row,) = rows(model, {"seeds": seeds(7)})
    assert (row.start, row.shape, row.conditions["mask"].shape, row.conditions[CLASSES]) == (7, (2, 4), (4,), 2)
    noise = noise_of([7], (2, 4), model.bundle.temperature)
    (row,) = rows(model, {"noise": Tensor("FP32", noise)}, T=4)
    np.testing.assert_array_equal(row.start, noise[0])
    model._session = Session()  # type: ignore[assignment]
    np.testing.assert_array_equal(model._run([row])[0], model._run(rows(model, {"seeds": seeds(7)}))[0])
    text = rows(model, {"seeds": seeds(7), "prompt": Tensor("INT64", np.array([[1, 2]]))})[0]
    assert text.conditions["prompt"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("inputs", "parameters", "told"),
    [
        ({}, {}, "give seeds .* or noise"),
        ({"seeds": seeds(1), "noise": Tensor("FP32", np.zeros((1, 2, 4)))}, {}, "give seeds .* one of the two"),
        ({"seeds": seeds(1, datatype="INT32")}, {}, r"seeds is INT32; it must be INT64 \[n\]"),
        ({"seeds": Tensor("INT64", np.zeros((1, 1)))}, {}, r"seeds has shape \[1, 1\]; it must be INT64 \[n\]"),
        ({"seeds": seeds(), "mask": None, CLASSES: None}, {}, "0 images are asked for; one request takes 1 to 6"),
        ({"seeds": seeds(*range(7)), "mask": None, CLASSES: None}, {}, "7 images are asked for"),
        ({"seeds": seeds(-1)}, {}, f"seed -1 is out of range; seeds are 0 to {SEEDS - 1}"),
        (
            {"noise": Tensor("FP32", np.zeros((1, 1, 4), np.float32))},
            {},
            r"noise has shape \[1, 1, 4\]; it must be FP32 \[n, 2, T\]",
        ),
        (
            {"noise": Tensor("FP32", np.zeros((1, 3, 4)))},
            {},
            r"noise has shape \[1, 3, 4\]; it must be FP32 \[n, 2, T\]",
        ),
        ({"noise": Tensor("FP32", np.full((1, 2, 4), np.inf))}, {}, "noise holds NaN or infinity"),
        ({"noise": Tensor("FP32", np.zeros((1, 2, 4)))}, {"T": 5}, "the parameter T is 5, and noise has 4"),
        ({"noise": Tensor("FP32", np.zeros((1, 2, 3)))}, {}, "is 3 of T|4 of T|has 4"),
        (
            {"seeds": seeds(1), "other": seeds(1)},
            {},
            "unknown input 'other'; this model takes seeds or noise, mask, class",
        ),
        ({"seeds": seeds(1)}, {"U": 3}, "unknown parameter 'U'; this model takes binary_data_output, T"),
        ({"seeds": seeds(1), CLASSES: seeds(1, 2)}, {}, r"class_labels has shape \[2\]; it must be INT64 \[1\]"),
        ({"seeds": seeds(1), CLASSES: Tensor("FP32", np.ones(1))}, {}, r"class_labels is FP32; it must be INT64 \[1\]"),
        ({"seeds": seeds(1), "prompt": Tensor("BYTES", np.array(["a", "b"]))}, {}, r"it must be BYTES \[1\]"),
        (
            {"seeds": seeds(1), "mask": Tensor("BYTES", np.array(["a"]))},
            {},
            r"mask has shape \[1\]; it must be BOOL \[1, T\]",
        ),
    ],
)
def test_what_is_no_row_is_told(inputs: Any, parameters: Any, told: str, model: Model) -> None:
    with pytest.raises(UserError, match=told):
        rows(model, inputs, **parameters)


def test_a_query_is_a_row(model: Model) -> None:
    (row,) = model.rows_of_query([("seed", "7"), ("mask", "true,false,true"), (CLASSES, "1"), ("prompt", "3,4")][:3])
    assert (row.start, row.shape, row.conditions["mask"].tolist()) == (7, (2, 3), [True, False, True])
    assert row.conditions[CLASSES] == 1
    for query, told in (
        ([], "seed is missing; give a whole number"),
        ([("seed", "x")], "seed is 'x'"),
        ([("seed", "1" * 21)], "seed is '1"),
        ([("seed", "-1"), ("mask", "true"), (CLASSES, "1")], "seed -1 is out of range"),
        ([("seed", "1"), ("seed", "2")], "'seed' is given twice"),
        ([("seed", "1"), (CLASSES, "a")], "'class_labels' is 'a'; it must be a number, or several such as"),
        ([("seed", "1"), (CLASSES, '"a"')], "it must be a number"),
        ([("seed", "1"), (CLASSES, "1,")], "it must be a number"),
    ):
        with pytest.raises(UserError, match=told):
            model.rows_of_query(query)


def test_what_it_is_is_told_to_clients(model: Model) -> None:
    told = model.metadata()
    assert told["inputs"] == [
        {"name": "seeds", "datatype": "INT64", "shape": [-1]},
        {"name": "mask", "datatype": "BOOL", "shape": [-1, -1], "parameters": {"description": "what counts"}},
        {"name": CLASSES, "datatype": "INT64", "shape": [-1], "parameters": {"description": "", "choices": 3}},
        {
            "name": "prompt",
            "datatype": "BYTES",
            "shape": [-1],
            "parameters": {"description": "", "optional": True, "default": ""},
        },
    ]
    assert told["outputs"] == [{"name": "made", "datatype": "FP32", "shape": [-1, 2, -1]}]
    assert told["parameters"] == {
        "image": False,
        "axes": {"T": [1, 3, 5]},
        "random_weights": False,
        "session": "remembers",
    }
    model.bundle = pictures()
    assert model.metadata()["outputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 4, 5, 3]}]
