"""Shards and the record of a job, without a bundle that samples."""

import hashlib
import io
import json
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.generate import shard as module
from edge_sampler.runtime.generate.job import RECORD, Job, Shard, digest, finished, missing, whole, write_record
from edge_sampler.runtime.generate.shard import make
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.inputs import Output
from edge_sampler.runtime.verified import file_sha256


def job(out: Path, seeds: range = range(3, 8), form: str = "webdataset", **change: Any) -> Job:
    conditions = {
        "label": np.arange(len(seeds)),
        "hint": np.eye(len(seeds), 3, dtype=np.float32),
        "prompt": np.zeros((len(seeds), 2), np.int64),
        "negative": np.zeros((len(seeds), 2), np.int64),
    }
    texts = {"prompt": [f"text {seed}" for seed in seeds], "negative": "none"}
    told: dict[str, Any] = {"conditions": conditions, "texts": texts, "sizes": {"T": 4}, **change}
    return Job("/b", "0" * 64, str(out), seeds, 2, form, "onnxrt", "fp32", 7, 0.5, **told)


def bundle(shape: tuple[int, ...] = (1, 2, 2), dtype: str = "float32") -> Any:
    return SimpleNamespace(
        manifest={"model": {"name": "m", "fingerprint": "f"}, "files": {"sampler.onnx": {"sha256": "1"}}},
        graph_name=lambda precision: "sampler.onnx",
        plan_of=lambda precision: SimpleNamespace(sha256=f"of {precision}"),
        output=Output("images", shape),
        dtype=dtype,
    )


def samples(seeds: range, shape: tuple[int, ...] = (1, 2, 2)) -> np.ndarray:
    return np.stack([np.full(shape, seed / 10, np.float32) for seed in seeds])


def making(monkeypatch: pytest.MonkeyPatch, of: Any, made: np.ndarray | None = None) -> list[Any]:
    asked = list[Any]()

    def sample(seeds: range, batch: int, temperature: float, **conditions: Any) -> np.ndarray:
        asked.append((seeds, batch, temperature, conditions))
        return samples(seeds, of.output.shape) if made is None else made

    sampler = SimpleNamespace(sample=sample, bundle=of, description="by hand")
    monkeypatch.setattr(module, "opened", lambda *told: asked.append(told) or sampler)  # type: ignore[func-returns-value]
    return asked


def test_a_shard_is_a_part_of_its_job(tmp_path: Path) -> None:
    whole = job(tmp_path)
    assert (whole.shards, job(tmp_path, range(4)).shards, job(tmp_path, range(1)).shards) == (3, 2, 1)
    assert [whole.file(index) for index in (0, 12)] == ["shard-000000.tar", "shard-000012.tar"]
    assert job(tmp_path, form="npz").file(1) == "shard-000001.npz"
    parts = [whole.part(index) for index in range(3)]
    assert [part.seeds for part in parts] == [range(3, 5), range(5, 7), range(7, 8)]
    assert [part.conditions["label"].tolist() for part in parts] == [[0, 1], [2, 3], [4]]
    assert parts[1].texts == {"prompt": ["text 5", "text 6"], "negative": "none"}
    assert parts[1].conditions["hint"].base is None  # nothing of the others goes to a worker


def test_a_tar_has_each_sample_and_what_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, part = making(monkeypatch, bundle()), job(tmp_path).part(1)
    made = make(part, "a.tar")
    assert asked[0] == ("/b", "0" * 64, "onnxrt", "fp32")
    seeds, batch, temperature, given = asked[1]
    assert (seeds, batch, temperature, given["T"]) == (range(5, 7), 7, 0.5, 4)
    assert given["label"].tolist() == [2, 3]
    path = tmp_path / "a.tar"
    assert made == Shard("a.tar", file_sha256(path), path.stat().st_size, 5, 2, "by hand")
    assert whole(path, made)
    with tarfile.open(path) as tar:
        members = {one.name: one for one in tar}
        assert list(members) == ["000000005.png", "000000005.json", "000000006.png", "000000006.json"]
        assert {(one.mode, one.mtime, one.uname) for one in members.values()} == {(0o644, 0, "")}
        content = {name: tar.extractfile(name).read() for name in members}  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content["000000006.png"]))), np.full((2, 2), 204))
    assert to_uint8(samples(range(6, 7))).max() == 204
    told = json.loads(content["000000006.json"])
    assert told.pop("hint_sha256") == hashlib.sha256(part.conditions["hint"][1].tobytes()).hexdigest()
    assert told == {"seed": 6, "label": 3, "prompt": "text 6", "negative": "none"}
    before = path.read_bytes()
    make(part, "a.tar")
    assert path.read_bytes() == before


@pytest.mark.parametrize(("shape", "dtype", "suffix"), [((2, 3), "float32", "npy"), ((2, 2, 3), "uint8", "png")])
def test_what_is_no_picture_is_an_array(
    shape: tuple[int, ...], dtype: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = samples(range(3, 5), shape) if dtype == "float32" else np.full((2, *shape), 9, np.uint8)
    making(monkeypatch, bundle(shape if dtype == "float32" else (3, 2, 2), dtype), made)
    make(job(tmp_path).part(0), "a.tar")
    with tarfile.open(tmp_path / "a.tar") as tar:
        name = f"000000004.{suffix}"
        assert name in tar.getnames()
        content = io.BytesIO(tar.extractfile(name).read())  # type: ignore[union-attr]
    found = np.load(content) if suffix == "npy" else np.asarray(Image.open(content))
    np.testing.assert_array_equal(found, made[1])


def test_an_archive_has_arrays_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    making(monkeypatch, bundle())
    part = job(tmp_path, form="npz").part(1)
    make(part, "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        assert set(stored.files) == {"images", "seeds", "label", "hint", "prompt", "negative"}
        assert stored["seeds"].tolist() == [5, 6]
        np.testing.assert_array_equal(stored["images"], samples(range(5, 7)))
        np.testing.assert_array_equal(stored["hint"], part.conditions["hint"])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_shard_holds_what_is_no_number(wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = samples(range(3, 5))
    made[1, 0, 1, 0] = wrong
    making(monkeypatch, bundle(), made)
    with pytest.raises(BoundError, match="seed 4 makes NaN or infinity; no shard was written of it"):
        make(job(tmp_path).part(0), "a.tar")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device", str(path))

    making(monkeypatch, bundle())
    monkeypatch.setattr(module, "write_tar", full)
    with pytest.raises(UserError, match=r"cannot write .*a\.tar: No space left on device; make room, and the same"):
        make(job(tmp_path).part(0), "a.tar")
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(manifest={"manifest_sha256": "1"})
    monkeypatch.setattr(module, "Bundle", SimpleNamespace(open=lambda path: found))
    monkeypatch.setattr(module, "Sampler", lambda *told: told)
    module.opened.cache_clear()
    first: Any = module.opened("b", "1", "onnxrt", "fp16")
    assert first == (found, "onnxrt", "fp16")
    assert first is module.opened("b", "1", "onnxrt", "fp16")  # once for all shards
    for other in ("0", "2"):
        with pytest.raises(UserError, match="b was replaced while it was used"):
            module.opened("b", other, "onnxrt", "fp16")
    module.opened.cache_clear()


def test_a_jobs_record_tells_its_samples(tmp_path: Path) -> None:
    one = job(tmp_path)
    told = one.record(bundle())
    assert {name: told[name] for name in told if name != "conditions"} == {
        "model": "m", "fingerprint": "f", "graph_sha256": "1", "plan_sha256": "of fp32", "seeds": [3, 7],
        "shard": 2, "format": "webdataset",
        "precision": "fp32", "temperature": 0.5, "sizes": {"T": 4},
    }  # fmt: skip
    other = job(tmp_path, conditions={**one.conditions, "label": np.arange(5) + 1}).record(bundle())
    assert [name for name in told["conditions"] if told["conditions"][name] != other["conditions"][name]] == ["label"]
    views = np.broadcast_to(np.array([1, 2], np.float32), (3, 2))
    same = (views, np.array(views), views.astype(float), views.reshape(2, 3), views[:2])  # one for all, one for each, …
    assert len({digest(one) for one in same}) == 5
    large = np.arange(2**19, dtype=np.float32).reshape(-1, 2)  # of two pieces
    assert digest(large) == digest(np.asfortranarray(large)) != digest(large[::-1])


@pytest.mark.parametrize("form", ["webdataset", "npz"])
def test_one_for_all_is_sent_once(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, hint = making(monkeypatch, bundle()), np.arange(10.0**4)
    one = job(tmp_path, form=form, conditions={"hint": np.broadcast_to(hint, (5, 10**4))}, texts={})
    assert len(pickle.dumps(one.part(0))) < 1.1 * hint.nbytes
    make(one.part(0), "one.npz")
    assert asked[1][3]["hint"].shape == (1, 10**4)
    make(replace(one.part(0), conditions={"hint": np.stack([hint] * 2)}), "each.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "each.npz").read_bytes()


def shards(out: Path) -> dict[str, Shard]:
    for name in ("a", "b"):
        (out / name).write_text(name)
    return {name: Shard(name, file_sha256(out / name), 1, place, 1, "by") for place, name in enumerate("ab")}


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    assert finished(tmp_path / "absent", {}) == finished(tmp_path, {}) == {}
    listed, record = shards(tmp_path), {"seeds": [0, 1], "shard": 1}
    write_record(tmp_path, record, dict(reversed(listed.items())), complete=False)
    stored = json.loads((tmp_path / RECORD).read_text())
    assert [one["file"] for one in stored["shards"]] == ["a", "b"]
    assert stored["complete"] is False
    write_record(tmp_path, record, listed, complete=True)  # in the other's place
    assert json.loads((tmp_path / RECORD).read_text()) == {**stored, "complete": True}
    assert finished(tmp_path, record) == listed
    for damage in ("x", "ab", ""):
        (tmp_path / "a").write_text(damage)
        assert list(finished(tmp_path, record)) == ["b"]
    (tmp_path / "a").unlink()
    assert list(finished(tmp_path, record)) == ["b"]


def test_another_jobs_shards_and_others_files_are_left_alone(tmp_path: Path) -> None:
    write_record(tmp_path, {"seeds": [0, 1], "shard": 2}, shards(tmp_path), complete=True)
    with pytest.raises(UserError, match=r"another job: its shard is 2, and 3 is asked for"):
        finished(tmp_path, {"seeds": [0, 1], "shard": 3})
    with pytest.raises(UserError, match=r"its seeds is \[0, 1\], and \[0, 9\] is asked for"):
        finished(tmp_path, {"seeds": [0, 9], "shard": 3})  # the first that differs
    with pytest.raises(UserError, match=r"its new is None, and 1"):
        finished(tmp_path, {"seeds": [0, 1], "shard": 2, "new": 1})
    for damage in ("{", "[1]", '{"job": {}, "shards": [{"file": "a"}]}', '{"job": 3, "shards": []}'):
        (tmp_path / RECORD).write_text(damage)
        with pytest.raises(UserError, match=r"shards\.json is damaged \(.+\): name a new folder"):
            finished(tmp_path, {"seeds": 1})
    (tmp_path / RECORD).unlink()
    with pytest.raises(UserError, match=rf"holds a and no {RECORD}"):
        finished(tmp_path, {})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".lock").touch()
    assert finished(tmp_path / "empty", {}) == {}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": "2"}, r"shards\[1\]\.count is '2'"),
        ({"by": None}, r"shards\[1\]\.by is None"),
        ({"file": 5}, r"shards\[1\]\.file is 5"),
        ({"bytes": 1.0}, r"shards\[1\]\.bytes is 1\.0"),
        ({"count": 2}, "'b' has not the seeds of a shard"),
        ({"count": 0}, "'b' has not the seeds of a shard"),
        ({"first": 3}, "'b' has not the seeds of a shard"),
    ],
)
def test_a_record_with_other_values_is_damaged(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    listed, record = shards(tmp_path), {"seeds": [0, 2], "shard": 1}
    write_record(tmp_path, record, listed, complete=True)
    stored = json.loads((tmp_path / RECORD).read_text())
    stored["shards"][1] |= change
    (tmp_path / RECORD).write_text(json.dumps(stored))
    with pytest.raises(UserError, match=rf"shards\.json is damaged \({told}\): name a new folder"):
        finished(tmp_path, record)


def test_a_shard_of_a_record_is_looked_for_in_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "a").write_text("a")
    listed = {"../a": Shard("../a", file_sha256(tmp_path / "a"), 1, 0, 1, "by")}
    record = {"seeds": [0, 0], "shard": 1}
    write_record(tmp_path / "out", record, listed, complete=True)
    assert finished(tmp_path / "out", record) == {}


def test_what_is_missing_is_made_in_order(tmp_path: Path) -> None:
    one = job(tmp_path)
    there = {"shard-000001.tar": Shard("", "", 0, 0, 0, "")}
    found = [(part.seeds, name) for part, name in missing(one, there)]
    assert found == [(range(3, 5), "shard-000000.tar"), (range(7, 8), "shard-000002.tar")]
