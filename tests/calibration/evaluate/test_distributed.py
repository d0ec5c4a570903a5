"""Two processes make what one makes, and one that loses the other says so."""

import itertools
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edge_sampler.calibration.evaluate import distributed
from edge_sampler.calibration.evaluate.distributed import joined
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.refinement import number_of_turns
from edge_sampler.models.loading import load
from edge_sampler.runtime.errors import UserError
from tests import warm
from tests.calibration.evaluate import jobs

ROOT = Path(__file__).parents[3]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHON_EXEC": warm.python()}
    command = [warm.python(), *TORCHRUN, *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.parametrize("told", ["2", "0", "-1", "junk", ""])
def test_processes_that_torchrun_did_not_start_are_told(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", told)
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=f"WORLD_SIZE is '{told}', .*: unset it, or start the command by torchrun$"):
        with joined(torch.device("cpu")):
            pytest.fail("it began")


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """What the jobs made in this process alone and in two, and what the two said. PyTorch is imported once for all."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    for name in ("products", "fit", "study"):
        jobs.run(name, one)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "PORTS": ",".join(free_port() for _ in jobs.JOBS)}
    command = [warm.python(), "-m", "tests.calibration.evaluate.jobs", str(two)]
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment | {"RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    return one, two, "".join(said)


def test_sums_over_two_processes_are_those_of_one(made: tuple[Path, Path, str]) -> None:
    sums = [np.load(folder / "products.npz") for folder in made[:2]]
    for name in ("products", "matrix", "slope", "learned"):
        one, two = sums[0][name], sums[1][name]
        scale = np.abs(one).max() if name in ("slope", "learned") else np.sqrt(np.outer(np.diag(one), np.diag(one)))
        assert np.abs(one - two).max() <= np.max(scale) * 1e-9, name


def test_two_processes_refine_as_one(made: tuple[Path, Path, str]) -> None:
    """Each has noises of all turns."""
    one, two = (np.load(folder / "products.npz") for folder in made[:2])
    assert one["errors"][1] < 0.9 * one["errors"][0]
    np.testing.assert_allclose(two["errors"], one["errors"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(two["refined"], one["refined"], rtol=1e-3, atol=1e-4)


def test_two_processes_make_the_plan_of_one(made: tuple[Path, Path, str]) -> None:
    one, two = (json.loads((folder / "plan.json").read_text()) for folder in made[:2])
    for row, other in zip(one["table"], two["table"], strict=True):
        assert row == pytest.approx(other, rel=1e-3, abs=1e-4)  # float32 networks see other batches
    assert one["report"]["evaluations"] == two["report"]["evaluations"]


def test_two_processes_measure_what_one_measures(made: tuple[Path, Path, str]) -> None:
    rows: list[list[dict[str, Any]]] = [
        json.loads((folder / "study" / "study.json").read_text())["rows"] for folder in made[:2]
    ]
    one, two = ({row["solver"]: row["rmse"] for row in some} for some in rows)
    assert two == pytest.approx(one, rel=1e-2)


def test_two_processes_share_an_ablation(made: tuple[Path, Path, str]) -> None:
    assert (made[1] / "tables.md").exists()
    assert made[2].count("tables.md") == 1  # two that know nothing of each other both say that they wrote it


WRITES = """
import sys, time
from pathlib import Path
import numpy as np, torch
from edge_sampler.calibration.evaluate.distributed import rank, total, written

def work(progress):
    return total(np.array([1.0 + rank()]))

def write(found, path):
    time.sleep(1)
    path.write_text(str(found[0]))

result = written(Path(sys.argv[1]), torch.device("cpu"), work, write)
if result is not None:
    print("wrote")
sys.exit(not Path(sys.argv[1]).exists())
"""


def test_the_first_process_writes_what_all_made_and_none_leaves_before(tmp_path: Path) -> None:
    """As torchrun starts them, which ends all when one fails."""
    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    done = torchrun(str(script), str(tmp_path / "written"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "written").read_text() == "3.0"
    assert done.stdout.count("wrote") == 1


DIES = """
import time
import numpy as np, torch
from edge_sampler.calibration.evaluate.distributed import joined, rank, total

with joined(torch.device("cpu")):
    total(np.zeros(1))
    if rank() == 1:  # as one that died leaves the others, but torchrun, which would end them, does not see it yet
        torch.distributed.destroy_process_group()
        time.sleep(60)
    total(np.zeros(1))
"""


def test_a_process_that_dies_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = torchrun(str(script), folder=tmp_path)
    assert done.returncode != 0
    assert "process 0 of 2 lost another one" in done.stderr


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("noises", [8, 70, 93, 128, 256])
def test_every_process_has_as_many_noises_of_each_turn(
    processes: int, noises: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "processes", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(range(noises)))
    assert sorted(itertools.chain(*shares)) == list(range(noises))
    assert max(map(len, shares)) - min(map(len, shares)) <= (1 if noises < 32 * processes else 32)
    turns = number_of_turns(noises)
    for share in shares:
        counts = np.bincount([seed % turns for seed in share], minlength=turns)
        assert counts.max() - counts.min() <= 1 + len(share) // 32


def test_fewer_noises_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_sampler.calibration.evaluate.distributed.processes", lambda: 4)
    with pytest.raises(UserError, match="3 noises are too few: 4 processes need one each, or more"):
        to_fit(load("edm-digits"), 3, 8, 0)
