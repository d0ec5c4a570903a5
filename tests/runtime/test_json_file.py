"""JSON from elsewhere is what it says, or a ValueError."""

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import LARGEST, MOST_VALUES, parse_json, read_json, read_object, write_json

SCALARS = strategies.none() | strategies.booleans() | strategies.integers() | strategies.text()
NUMBERS = strategies.floats(allow_nan=False, allow_infinity=False)
VALUES = strategies.recursive(
    SCALARS | NUMBERS,
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
)


@given(VALUES)
def test_what_json_writes_is_read(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "'c' stands twice"),
        ('{"a": NaN}', "NaN is no number"),
        ("[1e999]", "1e999 is beyond float64"),
        ("[" * 100_000, "nested too deep"),
        (f"[{'0,' * MOST_VALUES}0]", f"more than {MOST_VALUES:,} values"),
        ("1" * 5000, "digits"),
        ("{", "Expecting"),
        (r'["\ud83d"]', "surrogates not allowed"),
        (r'{"\uDE00": 1}', "surrogates not allowed"),
    ],
    ids=lambda value: value[:20],
)
def test_what_misleads_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(text)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json(path) == [1, 2]
    with path.open("r+b") as file:
        file.truncate(LARGEST + 1)  # a hole, which takes no room on the disk
    with pytest.raises(ValueError, match=f"{LARGEST + 1} bytes, more than"):
        read_json(path)


def test_a_character_of_two_halves_and_infinity_are_read() -> None:
    assert parse_json(r'["\ud83d\ude00", "\u00e9"]') == ["\U0001f600", "\u00e9"]
    assert parse_json("[Infinity, -Infinity]") == [float("inf"), -float("inf")]


def test_only_a_file_is_read_and_only_its_members_are_an_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is no file"):
        read_json(tmp_path)
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "b" * 100}))
    assert read_object(path) == read_json(path) == {"a": "b" * 100}
    for text, told in (("[1]", "it holds a list"), ("{", "Expecting"), ('{"a": NaN}', "NaN is no number")):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"a\.json: not a readable JSON object \(.*{told}"):
            read_object(path)
    with pytest.raises(UserError, match=r"absent: not a readable JSON object \(.*No such file"):
        read_object(tmp_path / "absent")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_no_reader_takes_is_not_written(number: float, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"error": 1.5})
    with pytest.raises(UserError, match=r"a\.json would hold a number that is not finite"):
        write_json(path, {"error": number})
    assert read_json(path) == {"error": 1.5}
