"""manifest.json: what is written is read, and whatever is not of its form is told by its place."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import (
    HASH,
    MANIFEST,
    SCHEMA,
    again,
    built_in,
    facts_of,
    fits,
    hash_of,
    misfit,
    read_manifest,
    write_manifest,
)
from tests.bundles import facts

FACTS = facts({"shape": [1], "conditions": {}, "axes": {}}, {"name": "images", "shape": [1], "units": ""})
MEASURED = {"samples": 4, "rms_error": 0.01, "largest_error": 0.3, "relative_error": 0.1}
FILES = {"sampler.onnx": {"sha256": "0" * 64, "bytes": 3}}


def write(folder: Path, change: dict[str, Any]) -> None:
    """A manifest of which that is changed, and its hash made right again."""
    told = {"schema": SCHEMA, **FACTS, "files": FILES, **change}
    (folder / MANIFEST).write_text(json.dumps({**told, HASH: hash_of(told)}))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / MANIFEST, {**FACTS, "schema": 1, HASH: "old"}, FILES)
    found = read_manifest(tmp_path)
    assert facts_of(found) == FACTS
    assert (found["files"], found["schema"]) == (FILES, SCHEMA)
    assert found[HASH] == hash_of({**FACTS, "schema": SCHEMA, "files": FILES})


def test_the_hash_is_of_what_it_says_and_not_of_how() -> None:
    one = {"b": [1, "a"], "a": {"y": 1.5, "x": None}}
    other = {"a": {"x": None, "y": 1.5}, HASH: "x", "b": [1, "a"]}
    assert hash_of(one) == hash_of(other) != hash_of({**one, "b": [1, "b"]})
    assert hash_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # of {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, "has schema 2; this version reads 3: export it again, with .*--model arms --nfe 1"),
        ({"schema": 4}, "has schema 4; .*a later version of edge-sampler made it"),
        ({"nfe": -1}, "is damaged: nfe is -1"),
        ({"files": {}}, "is damaged: files lacks sampler.onnx"),
        ({"files": {**FILES, "../a": FILES["sampler.onnx"]}}, "is damaged: it lists '../a', which is no file's name"),
        ({"files": {**FILES, "a": {"sha256": "0" * 63, "bytes": 1}}}, "is damaged: files.a.sha256 is '000"),
        ({"engines": [{"file": "a"}]}, r"is damaged: engines\[0\] lacks flavour"),
        ({"stages": ["encoder", "other"]}, r"is damaged: stages\[1\] is 'other'"),
        ({"schema": 3.0}, "is damaged: schema is 3.0"),
        ({"tools": {"a\x1b[2J": "1"}}, r"is damaged: tools has the name 'a\\x1b\[2J'"),
        ({"inputs": {**FACTS["inputs"], "shape": [5]}}, r"is damaged: its noise is \[5\], and that of its loop \["),
        ({"inputs": {**FACTS["inputs"], "axes": {"n": [1, 2, 3]}}}, "is damaged: it takes other inputs than its loop"),
        ({"output": {**FACTS["output"], "shape": [5]}}, r"is damaged: it makes \[5\] of \[.*without a decoder"),
        ({"model": {**FACTS["model"], "sigma_min": 0}}, "is damaged: its model knows the noise levels 0 to "),
        (
            {"model": {**FACTS["model"], "sigma_min": 1e9}},
            "is damaged: its model knows the noise levels 1000000000.0 to",
        ),
        ({"precisions": {"fp32": MEASURED}}, "is damaged: it has fp32 twice"),
    ],
)
def test_what_is_not_of_its_form_is_told(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    write(tmp_path, change)
    with pytest.raises(UserError, match=told):
        read_manifest(tmp_path)


def test_another_hash_and_no_manifest_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bundle at .*: cannot read manifest.json \(No such file"):
        read_manifest(tmp_path)
    write(tmp_path, {})
    content = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**content, "nfe": 2}))
    with pytest.raises(UserError, match=f"its {HASH} is not that of what it says"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match=r"manifest.json is damaged: Expecting"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("[3]")
    with pytest.raises(UserError, match="has schema None"):
        read_manifest(tmp_path)


def test_what_is_built_into_a_graph_is_told() -> None:
    assert built_in({"built_in": {}, "guidance": 1.0}) == []
    assert built_in({"built_in": {"style": 3}, "guidance": 2.5}) == ["style = 3", "guidance 2.5"]
    assert built_in({"built_in": {}, "guidance": 0}) == ["guidance 0"]


FORM = {"a": int, "b?": [float], "c?": {"*": str, "x": bool}}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"a": 1}, ""),
        ({"a": 0, "b": [1, 2.5], "c": {"x": True, "y": ""}, "other": [None]}, ""),
        ({"b": []}, "it lacks a"),
        ({"a": 1, "b": [1, "2"]}, "b[1] is '2'"),
        ({"a": 1, "b": {}}, "b is {}"),
        ({"a": 1, "c": {}}, "c lacks x"),
        ({"a": 1, "c": {"x": 1}}, "c.x is 1"),
        ({"a": 1, "c": {"x": True, "y": 2, "z": 3}}, "c.y is 2"),
        ([], "it is []"),
    ],
)
def test_the_first_misfit_is_told_by_its_place(value: Any, told: str) -> None:
    assert misfit(value, FORM) == told


@pytest.mark.parametrize(
    ("form", "fitting", "others"),
    [
        (int, [0, 1, 2**63 - 1], [-1, 2**63, 2**63 + 1, True, 1.0, "1", None]),
        (float, [0, -1, 0.5, 1 - 2**63], [2**63, -(2**63), True, "1", None]),
        (bool, [True, False], [0, 1, None]),
        (str, ["", "a", "é\n\t\u200f", "a" * 2**16], [1, None, ["a"], "\x1b[1m", "\r", "\u202e", "a" * (2**16 + 1)]),
        (object, [1, None, "a", []], []),
        (re.compile("a|bc"), ["a", "bc"], ["abc", "", 1, None]),
        ((str, type(None)), ["a", None], [0, False]),
    ],
)
def test_values_of_a_form(form: Any, fitting: list[Any], others: list[Any]) -> None:
    assert [value for value in (*fitting, *others) if fits(value, form)] == fitting


def test_what_to_do_about_another_schema() -> None:
    assert again({"schema": SCHEMA + 1}).startswith("a later version")
    assert again({"schema": True, "model": {"name": "a"}, "nfe": 3}).endswith("--model a --nfe 3")
    odd: Any
    for odd in ([], {"schema": "9"}, {"model": "a"}):
        assert again(odd).endswith("--model MODEL --nfe N")
