"""JSON from elsewhere is what it says, or a ValueError."""

import json
from pathlib import Path

import pytest
from hypothesis import given, strategies

from edge_sampler.runtime import json_file
from edge_sampler.runtime.json_file import parse_json, read_json

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
        ("1" * 5000, "digits"),
        ("{", "Expecting"),
    ],
)
def test_what_misleads_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_json(text)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json(path) == [1, 2]
    monkeypatch.setattr(json_file, "LARGEST", 5)
    with pytest.raises(ValueError, match="6 bytes, more than"):
        read_json(path)
