"""What a request says and what is made of it, without a server: the protocol's limits, and a model that remembers."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.condition import CLASSES, Axis, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.noise import SEEDS, unit_noise
from edge_sampler.runtime.serve import model as module
from edge_sampler.runtime.serve.model import Model, RunError
from edge_sampler.runtime.serve.protocol import HEAD_LENGTH, Asked, Tensor, read_request, write_response
from edge_sampler.runtime.text import Text

SEED = {"name": "seeds", "shape": [1], "datatype": "INT64", "data": [1]}


def body(*inputs: Mapping[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or [SEED], **more}).encode()


def read(*inputs: Mapping[str, Any], data: bytes = b"", **more: Any) -> Asked:
    head = body(*inputs, **more)
    return read_request(head + data, str(len(head)))


def of_bytes(datatype: str, shape: list[int], data: bytes) -> np.ndarray:
    told = {"name": "a", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(data)}}
    return read(told, data=data).inputs["a"].array


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": 3}, "one of inputs has the name 3; it must be a string"),
        ({"shape": None}, '"seeds" has shape null; it must be a list of whole numbers'),
        ({"shape": [-1]}, r'"seeds" has shape \[-1\]'),
        ({"shape": [True]}, r'"seeds" has shape \[true\]'),
        ({"shape": [2]}, r"data of shape \[1\], which is not its shape \[2\]"),
        ({"datatype": "INT65"}, '"seeds" has datatype "INT65"; allowed: BOOL, UINT8, .*, FP64, BYTES'),
        ({"datatype": ["INT64"]}, r"has datatype \[\"INT64\"\]"),
        ({"parameters": 3}, '"seeds" has parameters 3; allowed: binary_data_size'),
        ({"parameters": {"a": 1}}, "allowed: binary_data_size"),
        ({"parameters": {"binary_data_size": 0}}, "has both data and binary_data_size"),
        ({"data": 3}, '"seeds" has data 3; it must be a list'),
        ({"data": [[1], [2, 3]], "shape": [3]}, "has rows of different lengths"),
        ({"data": [[1, 2], [3, 4]], "shape": [4, 1]}, r"data of shape \[2, 2\], which is not its shape \[4, 1\]"),
        ({"data": [1.5]}, '"seeds" is INT64 and holds float'),
        ({"data": [True]}, "is INT64 and holds bool"),
        ({"data": [None]}, "holds NoneType"),
        ({"data": [2**63]}, "holds what is no INT64"),
        ({"data": [-1], "datatype": "UINT8"}, "holds what is no UINT8"),
        ({"data": [1], "datatype": "BYTES"}, "is BYTES and holds int"),
        ({"data": ["\ud800"], "datatype": "BYTES"}, "holds what is no BYTES"),
        ({"data": [1], "datatype": "BOOL"}, "is BOOL and holds int"),
    ],
)
def test_an_input_that_is_none_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read({**SEED, **change})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"id": 3}, "id is 3; it must be a string"),
        ({"inputs": []}, r"inputs must be a list of objects, at least one, and inputs is \[\]"),
        ({"inputs": [1]}, "inputs must be a list of objects"),
        ({"inputs": [SEED, SEED]}, 'inputs has "seeds" twice'),
        ({"outputs": {}}, "outputs must be a list of objects, and outputs is {}"),
        ({"outputs": [{"name": "a"}, {"name": "a"}]}, 'outputs has "a" twice'),
        ({"outputs": [{"name": "a", "parameters": {"binary_data": 1}}]}, "binary_data is 1; it must be true or false"),
        ({"parameters": []}, r"parameters are \[\]; they must be an object"),
        ({"parameters": {"binary_data_output": None}}, "binary_data_output is null"),
    ],
)
def test_a_request_that_is_none_is_told_why(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_request(json.dumps({"inputs": [SEED], **change}).encode(), None)


@pytest.mark.parametrize(
    ("sent", "length", "told"),
    [
        (b"{", None, "the body is not JSON"),
        (b"\xff", None, "the body is not JSON"),
        (b"[1]", None, r"the body is \[1\]; it must be an object with inputs"),
        (b"[" * 100_000, None, "the body's JSON is nested too deep"),
        (b"{}", "3", "Content-Length is '3'; it must be the bytes of JSON among the body's 2"),
        (b"{}", "-1", "is '-1'"),
        (b"{}", "\u0661", "it must be the bytes"),
        (b"{}", "9" * 50, f"is '{'9' * 40}'"),
        (body() + b"123", str(len(body())), "3 bytes behind the last input"),
    ],
)
def test_a_body_is_json_and_what_it_announces(sent: bytes, length: str | None, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        read_request(sent, length)
    assert len(str(refused.value)) <= 300


def test_what_a_request_asks_for() -> None:
    asked = read(outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}], id="x")
    assert (asked.id, dict(asked.outputs), asked.binary, dict(asked.parameters)) == (
        "x",
        {"a": False, "b": False},
        False,
        {},
    )
    asked = read(outputs=[{"name": "a"}], parameters={"binary_data_output": True, "length": 3})
    assert (asked.id, dict(asked.outputs), asked.binary, dict(asked.parameters)) == (
        None,
        {"a": True},
        True,
        {"length": 3},
    )
    nested = read({**SEED, "data": [[1, 2, 3], [4, 5, 6]], "shape": [2, 3]}).inputs["seeds"]
    assert nested.array.tolist() == [[1, 2, 3], [4, 5, 6]]
    flat = read({**SEED, "data": [1, 2, 3, 4], "shape": [2, 2]}).inputs["seeds"]
    assert flat.array.tolist() == [[1, 2], [3, 4]]
    assert read({**SEED, "datatype": "FP32", "data": [1]}).inputs["seeds"].array.dtype == np.float32


def test_bytes_are_little_endian_and_as_many_as_the_shape_takes() -> None:
    assert of_bytes("INT32", [2], b"\1\0\0\0\0\1\0\0").tolist() == [1, 256]
    assert of_bytes("BOOL", [3], b"\0\1\2").tolist() == [False, True, True]
    assert of_bytes("BYTES", [2], b"\1\0\0\0a\0\0\0\0").tolist() == ["a", ""]
    assert of_bytes("BYTES", [2], b"\1\0\0\0a\2\0\0\0bc").tolist() == ["a", "bc"]
    assert of_bytes("BYTES", [0], b"").tolist() == []
    for datatype, shape, data, told in (
        ("INT32", [2], b"\0" * 7, r"has a binary_data_size of 7, and INT32 of shape \[2\] takes 8"),
        ("FP64", [10**9] * 3, b"", "takes far more"),
        ("BYTES", [1], b"\2\0\0\0a", "has 5 bytes, which are not 1 texts with their lengths"),
        ("BYTES", [2], b"\1\0\0\0a", "which are not 2 texts"),
        ("BYTES", [1], b"\1\0\0\0a\0\0\0\0", "which are not 1 texts"),
        ("BYTES", [1], b"\1\0\0\0a\0\0\0", "which are not 1 texts"),
        ("BYTES", [1], b"\1\0\0\0\xff", "is text that is no UTF-8"),
    ):
        with pytest.raises(UserError, match=told):
            of_bytes(datatype, shape, data)
    for size, told in ((True, "binary_data_size of true"), (-1, "of -1, and 0 bytes are left"), (1, "of 1, and 0")):
        with pytest.raises(UserError, match=told):
            read({"name": "a", "shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": size}})


def test_inputs_of_bytes_follow_one_another() -> None:
    told = [
        {"name": name, "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}} for name in ("a", "b")
    ]
    found = read(told[0], SEED, told[1], data=b"\1\2\3\4").inputs
    assert [found[name].array.tolist() for name in ("a", "seeds", "b")] == [[1, 2], [1], [3, 4]]


def test_a_response_has_what_was_asked_for_as_it_was_asked_for() -> None:
    made: dict[str, np.ndarray] = {"a": np.arange(2, dtype=np.float32), "b": np.arange(3, dtype=np.uint8)}

    def answered(asked: Asked) -> tuple[dict[str, Any], bytes]:
        content, headers = write_response(asked, "m", made)
        length = int(headers.get(HEAD_LENGTH, len(content)))
        assert headers["Content-Type"] == ("application/octet-stream" if HEAD_LENGTH in headers else "application/json")
        return json.loads(content[:length]), content[length:]

    head, data = answered(read())
    a = {"name": "a", "datatype": "FP32", "shape": [2], "data": [0.0, 1.0]}
    b = {"name": "b", "datatype": "UINT8", "shape": [3], "data": [0, 1, 2]}
    assert head == {"model_name": "m", "model_version": "1", "outputs": [a, b]}
    assert data == b""
    head, data = answered(read(id="7", outputs=[{"name": "b"}]))
    assert head == {"model_name": "m", "model_version": "1", "id": "7", "outputs": [b]}
    mixed = [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}]
    head, data = answered(read(outputs=mixed))
    assert [one.get("parameters") for one in head["outputs"]] == [{"binary_data_size": 8}, None]
    assert ["data" in one for one in head["outputs"]] == [False, True]
    assert data == made["a"].tobytes()
    head, data = answered(read(parameters={"binary_data_output": True}))
    assert data == made["a"].tobytes() + made["b"].tobytes()
    with pytest.raises(UserError, match="unknown output 'c'; this model makes a, b"):
        answered(read(outputs=[{"name": "c"}]))


@pytest.mark.parametrize(("length", "end"), [(54, '"]]'), (55, "x…")])
def test_what_came_is_told_up_to_sixty_characters(length: int, end: str) -> None:
    with pytest.raises(UserError) as refused:
        read({**SEED, "name": [["x" * length]]})
    told = str(refused.value).removeprefix("one of inputs has the name ").removesuffix("; it must be a string")
    assert told.endswith(end)
    assert len(told) == (60 if length == 54 else 58)


def test_a_message_stays_short() -> None:
    with pytest.raises(UserError) as refused:
        read({**SEED, "name": [["long"] * 100]})
    assert len(str(refused.value)) < 120


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
        "random_weights": False, "tokenized": lambda given: {"prompt": [0, 0], **given},
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


def seeds(*numbers: int, datatype: str = "INT64") -> Tensor:
    return Tensor(datatype, np.array(numbers))


def rows(model: Model, inputs: Mapping[str, Tensor], **parameters: Any) -> Any:
    given = {"mask": Tensor("BOOL", np.ones((1, 4), bool)), CLASSES: Tensor("INT64", np.array([2])), **inputs}
    return model.rows_of(Asked(None, {k: v for k, v in given.items() if v}, {}, False, parameters))


def test_a_row_is_a_seed_or_a_noise_and_its_conditions(model: Model) -> None:
    (row,) = rows(model, {"seeds": seeds(7)})
    assert (row.start, row.shape, row.conditions["mask"].shape, row.conditions[CLASSES]) == (7, (2, 4), (4,), 2)
    noise = unit_noise([7], (2, 4))
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
