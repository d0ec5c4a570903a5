"""The fuzzer finds what it is for; and the readers stand some hundred of its inputs (`.ci/run` gives them a minute)."""

from itertools import islice
from pathlib import Path

import pytest

from edge_sampler.runtime.errors import UserError
from tests import fuzz


@pytest.mark.parametrize("name", ["snapshot", "state dict", "old state dict", "safetensors", "plan", "manifest"])
def test_readers_return_or_raise_one_line(name: str, tmp_path: Path) -> None:
    target = fuzz.targets(tmp_path)[name]
    assert [fuzz.trial(target, sound, tmp_path) for sound in target.sound] == [None] * len(target.sound)
    changed = list(islice(fuzz.inputs(target, 1), 100))
    assert len(set(changed)) > 90
    assert not set(changed) & set(target.sound)
    assert [found for content in changed if (found := fuzz.trial(target, content, tmp_path))] == []


def test_what_goes_wrong_is_told(tmp_path: Path) -> None:
    def hang(path: Path) -> None:
        while True:
            pass

    def lines(path: Path) -> None:
        raise UserError("one\ntwo")

    assert fuzz.trial(fuzz.Target(hang, "a", ()), b"", tmp_path, seconds=1) == "TimeoutError: more than 1 s"
    assert fuzz.trial(fuzz.Target(lines, "a", ()), b"", tmp_path) == "a message of several lines"
    found = fuzz.trial(fuzz.Target(lambda path: [][0], "a", ()), b"", tmp_path)
    assert found == "IndexError: list index out of range"
    assert fuzz.trial(fuzz.Target(Path.read_bytes, "a", ()), b"", tmp_path) is None
