"""What a request says and what answers it, without a server: the protocol's limits."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.serve.protocol import DTYPES, HEAD_LENGTH, NAMES, Asked, read_request, write_response

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
        *(
            ({"shape": shape, "data": [1] * (0 not in shape), "datatype": datatype}, '^"seeds" has shape .*, which no')
            for shape in ([1] * 33, [0, 2**100], [0, 1, 2**62, 2**62], [0, 2**49])
            for datatype in ("INT64", "BYTES")
        ),
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
        ({"data": ["\ud800"], "datatype": "BYTES"}, "the body is not JSON: .*surrogates not allowed"),
        ({"data": [1e39], "datatype": "FP32"}, r'^"seeds" holds 1e\+39, which is beyond FP32$'),
        ({"data": [0, 1e39], "datatype": "FP32", "shape": [2]}, r'^"seeds" holds 1e\+39, which is beyond FP32$'),
        (
            {"data": [float("inf"), 7e4], "datatype": "FP16", "shape": [2]},
            '^"seeds" holds 70000.0, which is beyond FP16$',
        ),
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
        (b"[" * 100_000, None, "the body is not JSON: its values are nested too deep"),
        (b'{"inputs": [{"data": [1], "data": [2]}]}', None, "the name 'data' stands twice in one object"),
        (b'{"inputs": [{"data": [NaN]}]}', None, "NaN is no number of JSON"),
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


def test_the_largest_shapes_are_arrays() -> None:
    for datatype in ("FP64", "BYTES"):
        assert of_bytes(datatype, [0, 2**48], b"").shape == (0, 2**48)
        assert read({**SEED, "shape": [0, 2**48], "data": [], "datatype": datatype}).inputs["seeds"].array.size == 0
    assert read({**SEED, "shape": [1] * 32}).inputs["seeds"].array.ndim == 32
    with pytest.raises(UserError, match=r'"a" has shape .*, which no array can have'):
        of_bytes("INT64", [0, 2**62, 2**62], b"")


def test_bytes_are_little_endian_and_as_many_as_the_shape_takes() -> None:
    assert of_bytes("INT32", [2], b"\1\0\0\0\0\1\0\0").tolist() == [1, 256]
    assert of_bytes("BOOL", [3], b"\0\1\2").tolist() == [False, True, True]
    assert of_bytes("BYTES", [2], b"\1\0\0\0a\0\0\0\0").tolist() == ["a", ""]
    assert of_bytes("BYTES", [2], b"\1\0\0\0a\2\0\0\0bc").tolist() == ["a", "bc"]
    assert of_bytes("BYTES", [0], b"").tolist() == []
    for datatype, shape, data, told in (
        ("INT32", [2], b"\0" * 7, r"has a binary_data_size of 7, and INT32 of shape \[2\] takes 8"),
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


def test_every_type_of_the_protocol_is_known_by_its_size() -> None:
    """Little-endian, as it asks."""
    sizes = dict.fromkeys(("UINT", "INT"), (8, 16, 32, 64)) | {"FP": (16, 32, 64)}
    known = {f"{kind}{bits}": f"<{kind[0].lower()}{bits // 8}" for kind, all_ in sizes.items() for bits in all_}
    assert known | {"BOOL": "bool"} == DTYPES
    assert {NAMES[np.dtype(dtype).name] for dtype in known.values()} == set(known)


def test_a_byte_that_is_not_zero_is_true() -> None:
    found = of_bytes("BOOL", [3], b"\x02\x00\x01")
    np.testing.assert_array_equal(found.view(np.uint8), [1, 0, 1])


def test_parameters_of_any_name_are_the_models() -> None:
    found = read(parameters={"T": 4, "z": 5, "binary_data_output": True})
    assert (found.parameters, found.binary) == ({"T": 4, "z": 5}, True)


def test_each_output_has_its_own_size() -> None:
    asked, outputs = read(parameters={"binary_data_output": True}), {"a": np.zeros(3, np.int64), "b": np.ones(1, bool)}
    written, headers = write_response(asked, "m", outputs)
    told = json.loads(written[: int(headers[HEAD_LENGTH])])["outputs"]
    assert [one["parameters"]["binary_data_size"] for one in told] == [24, 1]
