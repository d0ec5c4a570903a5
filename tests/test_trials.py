"""The trials notice what they are for: a mutant that lives, a file that is half new, a sample that is another's."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler import runtime
from tests.kills import wrong_in
from tests.mutate import annotations, compiles, drawn, interval, mutants, told
from tests.mutations import ALL, ROOT, Mutation
from tests.soak import Asked

SOUND = """def half(number: int | None = 2) -> float | None:
    γ: int | str = 1
    for _ in range(3):
        γ = number + 1
    return γ / 2 if number == 4 else None
"""


@pytest.mark.parametrize("mutation", ALL, ids=lambda mutation: mutation.name)
def test_what_is_mutated_by_hand_stands_once(mutation: Mutation) -> None:
    """And so do its tests; else a mutation is of nothing, and nobody knows before it is run."""
    assert (ROOT / mutation.file).read_text("utf-8").count(mutation.old) == 1
    for name in mutation.tests.split():
        file, _, test = name.partition("::")
        assert (ROOT / file).exists()
        assert f"def {test}(" in (ROOT / file).read_text("utf-8") if test else True


def test_mutants_are_of_what_runs_one_a_place() -> None:
    pytest.importorskip("cosmic_ray")
    every = list(mutants(SOUND))
    assert {mutant.line for mutant in every} == {1, 2, 3, 4, 5}
    assert not any(mutant.operator.startswith("ReplaceBinaryOperator_BitOr") for mutant in every)
    assert not any(mutant.operator.endswith("Eq_Is") for mutant in every)
    codes = drawn(every, 5, "a", SOUND)
    assert len(codes) == len({(mutant.line, mutant.column) for mutant in codes}) == 5
    assert codes == drawn(list(mutants(SOUND)), 5, "a", SOUND) != drawn(list(mutants(SOUND)), 5, "b", SOUND)
    for code in codes.values():
        assert compiles(code)
        assert told(SOUND, code) in code


def test_annotations_are_where_they_stand() -> None:
    lines = SOUND.splitlines()
    found = {lines[line - 1][start:end] for (line, start), (_, end) in annotations(SOUND)}
    assert found == {"int | None", "float | None", "int | str"}
    assert not compiles("a = = 1")


def test_the_interval_of_a_share() -> None:
    """Wilson's, of 34 of 40 and of all: Brown, Cai and DasGupta 2001, eq. 4."""
    assert interval(34, 40) == pytest.approx((0.7093, 0.9294), abs=1e-4)
    assert interval(40, 40)[1] == pytest.approx(1)
    assert 0.9 < interval(40, 40)[0] < 1


def test_what_is_neither_old_nor_new_is_wrong() -> None:
    old, new = {"a": {"x": "1", "y": "1"}, "b": {"z": "1"}}, {"a": {"x": "2", "y": "2"}, "grows": {"p": "1", "q": "2"}}
    for found, wrong in (
        (old, []),
        ({**new, "b": old["b"]}, []),
        ({"a": new["a"], "b": old["b"], "grows": {"q": "2", "shards.json": "3"}}, []),
        ({"a": {"x": "1", "y": "2"}, "b": old["b"]}, ["a"]),
        ({"a": old["a"]}, ["b"]),
        ({**old, "grows": {"p": "2"}}, ["grows/p"]),
        ({**old, "c": {"x": "1"}}, ["c"]),
    ):
        assert wrong_in(found, old, new, "grows") == wrong


def test_another_seeds_sample_is_wrong(conditional: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with runtime.load(conditional) as sampler:
        asked = Asked(sampler, seeds=3, largest=5)
        assert asked.wrong(random.Random(0))[1] == 0
        sample = sampler.sample

        def shifted(*arguments: Any, **conditions: Any) -> np.ndarray:
            return np.roll(sample(*arguments, **conditions), 1, axis=0)

        monkeypatch.setattr(sampler, "sample", shifted)
        counts = [asked.wrong(random.Random(seed)) for seed in range(3)]
        assert sum(others for _, others in counts) > 0
