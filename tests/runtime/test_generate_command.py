"""What ``generate`` is told and tells, with nobody to make the shards."""

import argparse
import json
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.backends import BACKENDS
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import CLASSES
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate import command
from edge_sampler.runtime.generate.command import main, show, span
from edge_sampler.runtime.generate.job import RECORD, Job, Shard, missing, write_record
from edge_sampler.runtime.noise import SEEDS
from edge_sampler.runtime.verified import file_sha256
from tests.conftest import run_main
from tests.runtime.small_bundles import HINT, LABELS, bundle, inputs_of

Made = list[tuple[str, int, str | None, list[Job]]]


@pytest.fixture
def small(tmp_path: Path) -> Bundle:
    (tmp_path / "small").mkdir()
    return bundle(tmp_path / "small", inputs_of(2, 3, hint=HINT, **{CLASSES: LABELS}), temperature=0.75)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """Who was asked for shards, by how many workers, where, and for which; each shard's file says its name."""
    found: Made = []

    def maker(by: str) -> Callable[..., Iterator[Shard]]:
        def make(tasks: Iterator[tuple[Job, str]], workers: int, address: str | None = None) -> Iterator[Shard]:
            parts = list[Job]()
            found.append((by, workers, address, parts))
            for part, name in tasks:
                parts.append(part)
                path = Path(part.out) / name
                path.write_text(name)
                size = path.stat().st_size
                yield Shard(name, file_sha256(path), size, part.seeds[0], len(part.seeds), f"{by} {len(parts) % 2}")

        return make

    monkeypatch.setattr(command, "in_processes", maker("processes"))
    monkeypatch.setattr(command, "on_ray", maker("ray"))
    monkeypatch.setattr(command, "choose", lambda *told: BACKENDS["onnxrt"])
    return found


def generate(small: Bundle, *arguments: str, hint: str = "hint=1,2") -> Path:
    out = small.folder.parent / "out"
    given = ("--condition", hint) if hint else ()
    assert run_main(main, str(small.folder), "--out", str(out), *given, *arguments) == 0
    return out


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("7", range(7, 8)), ("0-3", range(4)), ("5-5", range(5, 6)), (f"{SEEDS - 1}", range(SEEDS - 1, SEEDS))],
)
def test_seeds_are_a_range(text: str, seeds: range) -> None:
    assert span(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "-1", "3-2", "1,2", "1-", f"{SEEDS}", f"0-{SEEDS}"])
def test_what_is_no_range_of_seeds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"is no range of seeds such as 0-999999, below {SEEDS}"):
        span(text)


def test_what_is_asked_for_goes_to_the_workers(
    small: Bundle, made: Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = list[Any]()
    monkeypatch.setattr(command, "choose", lambda *told: chosen.append(told[1:]) or BACKENDS["onnxrt"])  # type: ignore[func-returns-value]
    told = ("--seeds", "3-7", "--shard", "2", "--class-labels", "0-2", "--temperature", "0.5", "--batch", "3")
    out = generate(small, *told, "--format", "npz", "--backend", "onnxrt", "--workers", "3")
    ((by, workers, address, parts),) = made
    assert (by, workers, address, chosen) == ("processes", 3, None, [("onnxrt", None)])
    assert [part.seeds for part in parts] == [range(3, 5), range(5, 7), range(7, 8)]
    assert [part.conditions[CLASSES].tolist() for part in parts] == [[0, 1], [2, 0], [1]]  # in turn
    np.testing.assert_array_equal(parts[1].conditions["hint"], np.array([[1, 2]], np.float32))  # for both
    (one, *_) = parts
    assert (one.bundle, one.out) == (str(small.folder.resolve()), str(out.resolve()))
    assert (one.shard, one.form, one.batch, one.temperature) == (2, "npz", 3, 0.5)
    assert (one.backend, one.precision, one.texts) == ("onnxrt", "fp32", {})
    assert one.manifest_sha256 == small.manifest["manifest_sha256"]
    record = json.loads((out / RECORD).read_text())
    assert record["complete"] is True
    assert [shard["count"] for shard in record["shards"]] == [2, 2, 1]
    said = capsys.readouterr()
    assert said.out == f"{out.resolve()}: 5 samples in 3 shards, by processes 0, processes 1\n"
    assert "are there already" not in said.err
    assert said.err.splitlines()[-1].lstrip().startswith("5 of 5 ")
    assert said.err.rstrip("\n ").endswith("0:00:00 left")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("processes", 1, None)),
        (("--ray", "auto"), ("ray", 8, "auto")),
        (("--ray", ""), ("ray", 8, "")),  # which refuses it
        (("--ray", "auto", "--workers", "1"), ("ray", 1, "auto")),
    ],
)
def test_who_makes_them_unless_told(
    arguments: tuple[str, ...], expected: tuple[object, ...], small: Bundle, made: Made
) -> None:
    generate(small, "--seeds", "0-1000", "--class-labels", "1", *arguments)
    assert made[0][:3] == expected
    (first, last) = made[0][3]
    assert (len(first.seeds), len(last.seeds)) == (1000, 1)
    assert (first.form, first.temperature, first.backend, first.batch) == ("webdataset", 0.75, "auto", None)


def test_the_same_command_goes_on(small: Bundle, made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    out = generate(small, "--seeds", "0-4", "--shard", "2", "--class-labels", "1")
    (out / "shard-000001.tar").write_text("damaged")
    (out / ".shard-000001.tar.0123abcd.new").mkdir()  # of a writer that died
    capsys.readouterr()
    generate(small, "--seeds", "0-4", "--shard", "2", "--class-labels", "1")
    assert [part.seeds for part in made[1][3]] == [range(2, 4)]
    assert capsys.readouterr().err.startswith("3 of 5 are there already\n")
    assert sorted(path.name for path in out.glob("shard-*")) == [f"shard-{index:06d}.tar" for index in range(3)]
    assert not list(out.glob(".shard*"))
    generate(small, "--seeds", "0-4", "--shard", "2", "--class-labels", "1")
    assert made[2][3] == []
    assert json.loads((out / RECORD).read_text())["complete"] is True


def test_a_job_goes_on_in_the_precision_that_it_began_in(
    small: Bundle, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ("--seeds", "0-4", "--class-labels", "1")
    generate(small, *told)
    faster = replace(BACKENDS["onnxrt"], precision=lambda bundle, asked: asked or "fp16")  # as an engine has it
    monkeypatch.setattr(command, "choose", lambda *told: faster)
    with pytest.raises(UserError, match="another job: its precision is fp32, and fp16 is asked for"):
        generate(small, *told)
    generate(small, *told, "--precision", "fp32")
    assert made[1][3] == []


def test_what_a_bundle_beside_it_needs_is_kept(small: Bundle, made: Made, tmp_path: Path) -> None:
    """Half of an export that died, where the disk cannot exchange folders; nothing goes where the job is refused."""
    out, told = tmp_path / "out", ("--seeds", "0-1", "--class-labels", "1")
    for name in ("new/b", "old"):
        (out / ".b.0123abcd.new" / name).mkdir(parents=True)
    (out / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt and no shards\.json"):
        generate(small, *told)
    assert (out / ".b.0123abcd.new" / "old").exists()
    (out / "notes.txt").unlink()
    generate(small, *told)
    assert sorted(path.name for path in out.iterdir()) == ["b", "shard-000000.tar", RECORD]


def test_a_record_is_kept_each_second(small: Bundle, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """And before the first shard, and behind the last: a folder that cannot be written is known at once."""
    times, records, shown = iter([10.0, 10.5, 11.0, 11.5, 12.5, 13.5]), list[Any](), list[Any]()
    monkeypatch.setattr("edge_sampler.runtime.generate.command.time.monotonic", lambda: next(times))
    keep = write_record

    def write(out: Path, record: Any, there: Any, complete: bool) -> None:
        records.append((len(there), complete))
        keep(out, record, there, complete)

    monkeypatch.setattr(command, "write_record", write)
    monkeypatch.setattr(command, "show", lambda *told: shown.append(told))
    generate(small, "--seeds", "0-9", "--shard", "2", "--class-labels", "1")
    assert records == [(0, False), (3, False), (5, True), (5, True)]
    assert shown == [(6, 10, 4.0), (10, 10, 10 / 3.5)]


def test_the_rate_is_of_what_was_made_now(small: Bundle, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    out = generate(small, "--seeds", "0-9", "--shard", "2", "--class-labels", "1")
    (out / "shard-000003.tar").unlink()
    shown, times = list[Any](), iter([10.0, 10.5])
    monkeypatch.setattr("edge_sampler.runtime.generate.command.time.monotonic", lambda: next(times))
    monkeypatch.setattr(command, "show", lambda *told: shown.append(told))
    generate(small, "--seeds", "0-9", "--shard", "2", "--class-labels", "1")
    assert shown == [(10, 10, 4.0)]


def test_a_clock_that_stands_still_divides_by_nothing(
    small: Bundle, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_sampler.runtime.generate.command.time.monotonic", lambda: 10.0)
    generate(small, "--seeds", "0-1", "--class-labels", "1")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--workers", "0"), "--workers is 0; it must be at least 1"),
        (("--workers", "-1", "--ray", "auto"), "--workers is -1; it must be at least 1"),
        (("--workers", "1025"), "--workers is 1025; it must be at least 1 and at most 1,024"),
        (("--shard", "0"), "--shard is 0; it must be at least 1"),
        (("--shard", "1000001"), "--shard is 1000001; it must be at least 1 and at most 1,000,000"),
        (("--format", "zip"), "invalid choice: 'zip'"),
        (("--class-labels", "10"), "class_labels holds 10"),
    ],
)
def test_mistakes_make_no_folder(arguments: tuple[str, ...], told: str, small: Bundle, made: Made) -> None:
    with pytest.raises(UserError, match=told):
        generate(small, "--seeds", "0-1", "--class-labels", "1", *arguments)
    assert not (small.folder.parent / "out").exists()
    assert not made


def test_what_is_missing_is_told_one_by_one(small: Bundle) -> None:
    """Of a hundred million shards too, whose names alone would take 10 GB."""
    job = Job("b", "0", "out", range(10**8), 1, "npz", "auto", "fp32", None, 1.0, {}, {}, {})
    first = Shard("shard-000000.npz", "0", 1, 0, 1, "here")
    tracemalloc.start()
    (part, name), *_ = islice(missing(job, {first.file: first}), 2)
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    assert (part.seeds, name) == (range(1, 2), "shard-000001.npz")


def test_what_is_required_is_asked_for(small: Bundle) -> None:
    for left_out in ("--seeds", "--out"):
        given = [word for name in {"--seeds", "--out"} - {left_out} for word in (name, "0-1")]
        with pytest.raises(UserError, match=f"the following arguments are required: {left_out}"):
            run_main(main, str(small.folder), *given)


def test_shards_go_into_a_folder(small: Bundle, made: Made, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="out is a file: --out is a folder"):
        generate(small, "--seeds", "0-1", "--class-labels", "1")
    (tmp_path / "out").unlink()
    run_main(main, str(small.folder), "--out", str(tmp_path / "a" / "b"), "--seeds", "0", "--condition", "hint=1,2",
             "--class-labels", "1")  # fmt: skip
    assert (tmp_path / "a" / "b" / RECORD).exists()


def test_one_value_for_each_seed(small: Bundle, made: Made, tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", hint=np.eye(3, 2, dtype=np.float32))
    generate(small, "--seeds", "5-7", "--class-labels", "0-1", hint=str(tmp_path / "rows.npz"))
    (part,) = made[0][3]
    np.testing.assert_array_equal(part.conditions["hint"], np.eye(3, 2))
    assert part.conditions[CLASSES].tolist() == [0, 1, 0]


@pytest.mark.parametrize(("terminal", "end"), [(True, "\r"), (False, "\n")])
def test_progress_is_one_line_on_a_terminal(terminal: bool, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    show(1_000, 3_000, 20.0)
    show(3_000, 3_000, 20.0)
    first = f"       1,000 of 3,000  20.0 a second  0:01:40 left {end}"
    assert stream.getvalue() == f"{first}       3,000 of 3,000  20.0 a second  0:00:00 left \n"


def test_texts_are_told_as_they_were_typed(tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ids that a tokenizer makes of them, which are what workers run on."""
    text = {"file": "t.json", "default": None, "follows": ""}
    inputs = inputs_of(2, 3, hint=HINT, prompt={**HINT, "dtype": "int64", "text": text})
    (tmp_path / "told").mkdir()
    monkeypatch.setattr(Bundle, "tokenized", lambda self, given: {**given, "prompt": [np.size(given["prompt"]), 9]})
    told = bundle(tmp_path / "told", inputs, files=["t.json"])
    generate(told, "--seeds", "0-2", "--shard", "2", "--condition", "prompt=3,a b")
    for part in made[0][3]:
        assert part.texts == {"prompt": "3,a b"}
        assert part.conditions["prompt"].tolist() == [[1, 9]]
        assert "hint" in part.conditions
    np.save(tmp_path / "one.npy", np.array(["a b"]))  # for all seeds
    run_main(main, str(told.folder), "--out", str(tmp_path / "of one"), "--seeds", "0-2", "--shard", "2",
             "--condition", "hint=1,2", "--condition", f"prompt={tmp_path / 'one.npy'}")  # fmt: skip
    assert [[*part.texts["prompt"]] for part in made[1][3]] == [["a b", "a b"], ["a b"]]
