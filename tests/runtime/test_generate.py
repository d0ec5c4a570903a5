"""Very many samples: each is its seed's, whatever dies on the way, and nothing is there twice or by halves."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_sampler.runtime import load
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.generate import command
from edge_sampler.runtime.generate.job import RECORD, Job, manifest_sha256
from edge_sampler.runtime.generate.shard import make, opened
from edge_sampler.runtime.images import to_uint8
from edge_sampler.runtime.lock import locked
from edge_sampler.runtime.verified import file_sha256
from tests.bundles import remake_manifest
from tests.conftest import run_main

ROOT = Path(__file__).parent.parent.parent


def generate(bundle: Path, out: Path, *arguments: str) -> None:
    run_main(command.main, str(bundle), "--out", str(out), *arguments)


def hashes(out: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(out.glob("shard-*"))}


def job(bundle: Path, out: Path, **changes: object) -> Job:
    out.mkdir(exist_ok=True)
    found = Bundle.open(bundle)
    plain = Job(
        str(bundle),
        manifest_sha256(found),
        str(out),
        range(5),
        2,
        "webdataset",
        "onnxrt",
        "fp32",
        None,
        1.0,
        {},
        {},
        {},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards are made in this process, since workers take a second to start."""
    monkeypatch.setattr(command, "in_processes", lambda tasks, workers: (make(*task) for task in tasks))
    opened.cache_clear()


def test_every_sample_is_its_seeds(conditional: Path, tmp_path: Path) -> None:
    generate(conditional, tmp_path / "out", "--seeds", "7-13", "--shard", "3", "--class-labels", "0-2")
    labels, samples = [0, 1, 2, 0, 1, 2, 0], dict[str, bytes]()
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert names == sorted(names, key=lambda name: name.split(".")[0])  # a sample's files stand together
            samples |= {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
    with load(conditional, "onnxrt") as sampler:
        expected = to_uint8(sampler.sample(range(7, 14), class_labels=labels))
    assert len(samples) == 14
    for row, seed in enumerate(range(7, 14)):
        found = np.asarray(Image.open(io.BytesIO(samples[f"{seed:09d}.png"])))
        np.testing.assert_array_equal(found.reshape(expected[row].shape), expected[row])
        assert json.loads(samples[f"{seed:09d}.json"]) == {"seed": seed, "class_labels": labels[row]}
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["complete"]
    assert [(one["first"], one["count"]) for one in record["shards"]] == [(7, 3), (10, 3), (13, 1)]
    assert {one["file"]: one["sha256"] for one in record["shards"]} == hashes(tmp_path / "out")


@pytest.mark.usefixtures("here")
def test_arrays(made: Path, tmp_path: Path) -> None:
    generate(made, tmp_path / "out", "--seeds", "3", "--format", "npz")
    with np.load(tmp_path / "out" / "shard-000000.npz") as stored, load(made, "onnxrt") as sampler:
        assert stored["seeds"].tolist() == [3]
        np.testing.assert_array_equal(stored["images"], sampler.sample([3]))


def test_what_was_damaged_or_lost_is_made_again_and_nothing_else(made: Path, tmp_path: Path) -> None:
    arguments, out = ("--seeds", "0-5", "--shard", "2"), tmp_path / "out"
    generate(made, out, *arguments)
    before, times = hashes(out), {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    content = bytearray((out / "shard-000001.tar").read_bytes())
    content[700] ^= 1
    (out / "shard-000001.tar").write_bytes(content)
    (out / "shard-000002.tar").unlink()
    (out / ".shard-000000.tar.0123abcd.new").mkdir()
    (out / ".shard-000000.tar.0123abcd.new" / "shard-000000.tar").write_text("of a writer that died")
    generate(made, out, *arguments, "--workers", "2")
    assert hashes(out) == before
    assert (out / "shard-000000.tar").stat().st_mtime_ns == times["shard-000000.tar"]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("whom", ["parent", "worker"])
def test_a_run_that_is_killed_goes_on(whom: str, made: Path, tmp_path: Path) -> None:
    arguments = ("--seeds", "0-399", "--shard", "4", "--workers", "2")
    line = [sys.executable, "-m", "runtime", "generate", str(made), "--out", str(tmp_path / "out"), *arguments]
    running = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not hashes(tmp_path / "out") and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    workers = [child for child in children(running.pid) if "spawn_main" in program(child)]
    assert len(workers) == 2
    os.kill(running.pid if whom == "parent" else workers[0], signal.SIGKILL)
    _, said = running.communicate(timeout=120)
    if whom == "worker":
        assert running.returncode == 2
        assert "a worker died" in said.splitlines()[-1]
    while any("spawn_main" in program(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any("spawn_main" in program(worker) for worker in workers)  # none goes on by itself
    there = hashes(tmp_path / "out")
    assert 0 < len(there) < 100
    generate(made, tmp_path / "out", *arguments)
    assert there.items() <= hashes(tmp_path / "out").items()
    assert len(hashes(tmp_path / "out")) == 100
    assert json.loads((tmp_path / "out" / RECORD).read_text())["complete"]


def children(parent: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text("utf-8").split()]


def program(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text("utf-8")
    except OSError:
        return ""


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seeds", "0-6"), r"its seeds is \[0, 5\], and \[0, 6\] is asked for"),
        (("--seeds", "0-5", "--shard", "3"), "its shard is 2, and 3"),
        (("--seeds", "0-5", "--temperature", "0.9"), "its temperature is 1.0, and 0.9"),
        (("--seeds", "0-5", "--format", "npz"), "its format is webdataset, and npz"),
    ],
)
def test_another_jobs_shards_are_not_mixed_in(
    arguments: tuple[str, ...], told: str, made: Path, tmp_path: Path
) -> None:
    generate(made, tmp_path / "out", "--seeds", "0-5", "--shard", "2")
    before = hashes(tmp_path / "out")
    with pytest.raises(UserError, match=told):
        generate(made, tmp_path / "out", "--shard", "2", *arguments)
    assert hashes(tmp_path / "out") == before


@pytest.mark.usefixtures("here")
def test_other_conditions_are_another_job(conditional: Path, tmp_path: Path) -> None:
    generate(conditional, tmp_path / "out", "--seeds", "0-1", "--class-labels", "0")
    with pytest.raises(UserError, match="its conditions is"):
        generate(conditional, tmp_path / "out", "--seeds", "0-1", "--class-labels", "1")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--seeds", "a"), "no range of seeds"),
        (("--seeds", "5-3"), "no range of seeds"),
        (("--seeds", f"0-{2**63}"), "no range of seeds"),
        (("--seeds", f"5-{10**8 + 5}"), "is 100,000,001 seeds; a job has 100,000,000 at most"),
        (("--seeds", "0-3", "--workers", "0"), "workers is 0"),
        (("--seeds", "0-3", "--shard", "0"), "shard is 0"),
        (("--seeds", "0-3", "--class-labels", "1"), "class_labels"),
        (("--seeds", "0-3", "--precision", "fp16"), "the bundle has no precision .fp16.; it has fp32"),
        (("--seeds", "0-3", "--batch", "0"), "batch is 0"),
        (("--seeds", "0-3", "--temperature", "0"), "temperature is 0"),
        (("--seeds", "0-3", "--temperature", "nan"), "temperature is nan; it must be above 0"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], told: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        generate(made, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").iterdir()]  # where the job would be another's


def test_a_folder_of_something_else_or_in_use_is_refused(made: Path, tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("a picture")
    with pytest.raises(UserError, match=r"holds holiday.jpg and no shards.json"):
        generate(made, tmp_path, "--seeds", "0-1")
    with pytest.raises(UserError, match="is a file"):
        generate(made, tmp_path / "holiday.jpg", "--seeds", "0-1")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="loop is a link that leads nowhere"):
        generate(made, tmp_path / "loop" / "out", "--seeds", "0-1")
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".lock", ""), pytest.raises(UserError, match="another process writes"):
        generate(made, tmp_path / "out", "--seeds", "0-1")
    (tmp_path / "out" / RECORD).write_text("[1]")
    with pytest.raises(UserError, match="damaged"):
        generate(made, tmp_path / "out", "--seeds", "0-1")


def test_a_bundle_that_was_replaced_is_not_mixed_in(copy: Path, tmp_path: Path) -> None:
    part = job(copy, tmp_path / "out").part(2)
    assert part.seeds == range(4, 5)
    remake_manifest(copy, lambda facts: facts.update(made="again"))
    opened.cache_clear()
    with pytest.raises(UserError, match="replaced"):
        make(part, "shard.tar")
    assert not list((tmp_path / "out").iterdir())


def test_no_shard_holds_nan(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = opened(str(made), manifest_sha256(Bundle.open(made)), "onnxrt", "fp32")
    images = np.zeros((2, 1, 8, 8), np.float32)
    images[1, 0, 3, 3] = np.nan
    monkeypatch.setattr(type(sampler), "sample", lambda *_, **__: images)
    with pytest.raises(BoundError, match="seed 3 makes NaN"):
        make(job(made, tmp_path / "out").part(1), "shard.tar")
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_ends_it_in_one_line(made: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    arguments = ("--seeds", "0-199", "--shard", "200", "--out", str(tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-m", "runtime", "generate", str(made), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "the same command goes on" in done.stderr.splitlines()[-1]
    assert not hashes(tmp_path / "out")
