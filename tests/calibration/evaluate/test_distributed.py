"""Two processes make the plan that one makes, and one that loses the other says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

COARSE = """
from edge_sampler.calibration import calibrate, chosen_levels, command
from edge_sampler.calibration.study import ablation, ablation_command, command as study_command, measure, study

chosen_levels.LEVELS, measure.MOST_STEPS = 8, 48
measure.REFERENCE_STEPS, calibrate.REFERENCE_STEPS, study.REFERENCE_STEPS = 48, 48, 48
ablation.BATCHES, ablation.SEEDS, ablation.ITERATIONS = (), 1, 1
"""
FIT = ["--solver", "iia-ipndm", "--target", "global", "--batch", "64", "--heldout", "64", "--fine-steps", "4"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

PRODUCTS = """
import sys, numpy as np, torch
from edge_sampler import models
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.evaluate.distributed import joined, rank, total
from edge_sampler.calibration.fit import gram
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.refinement import normal_equations
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.study.rivals import bns
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.learn import Lesson, gradient_at
from edge_sampler.calibration.trace import trace
from edge_sampler.calibration.views import PIXELS

model = models.load("edm-digits")
with joined(torch.device("cpu")):
    noises = to_fit(model, 64, 64, 0)
    fit = noises.part(slice(0, noises.fitting))
    products = gram([fit.network(fit.noise * sigma, sigma) for sigma in (80.0, 2.0, 0.1)])
    plan = trace(scheme_of(find("ddim"), grid_of(model, "edm"), Settings(3)))
    matrix, slope = normal_equations(fit, torch.zeros_like(fit.noise), plan, PIXELS, NO_CACHE)
    lesson = Lesson("", lambda values: bns.plan_of(values, 3, 80.0), bns.parameters_of(plan), torch.mean, (), 0)
    turn = Contest(noises, Settings(3))
    turn.__dict__["goal"] = torch.zeros_like(noises.noise)
    state = {"now": lesson.start, "shift": np.zeros(0)}
    learned = np.stack([gradient_at(turn, lesson, plan, state, iteration) for iteration in (0, 1)])
    if rank() == 0:
        np.savez(sys.argv[1], learned=learned, products=products, matrix=matrix, slope=slope)
    if len(sys.argv) > 2 and rank() == 1:
        sys.exit("dies")
    if len(sys.argv) > 2:
        total(np.zeros(1))
"""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "EDGE_SAMPLER_CACHE": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_sums_over_two_processes_are_those_of_one(tmp_path: Path) -> None:
    script, sums = tmp_path / "products.py", []
    script.write_text(PRODUCTS)
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        done = run([*command, str(script), str(tmp_path / f"{name}.npz")], tmp_path)
        assert done.returncode == 0, done.stderr
        sums.append(np.load(tmp_path / f"{name}.npz"))
    for name in ("products", "matrix", "slope", "learned"):
        one, two = sums[0][name], sums[1][name]
        scale = np.abs(one).max() if name in ("slope", "learned") else np.sqrt(np.outer(np.diag(one), np.diag(one)))
        assert np.abs(one - two).max() <= np.max(scale) * 1e-9, name


def test_two_processes_make_the_plan_of_one(tmp_path: Path) -> None:
    script, plans = tmp_path / "fit.py", []
    script.write_text(COARSE + "command.main()")
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        out = tmp_path / f"{name}.json"
        fit = ["--model", "edm-digits", "--nfe", "3", *FIT, "--out", str(out)]
        done = run([*command, str(script), *fit], tmp_path / name)
        assert done.returncode == 0, done.stderr
        plans.append(json.loads(out.read_text()))
    for one, two in zip(plans[0]["table"], plans[1]["table"], strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)  # float32 networks see other batches
    assert plans[0]["report"]["evaluations"] == plans[1]["report"]["evaluations"]


def test_two_processes_measure_what_one_measures(tmp_path: Path) -> None:
    few = ["--nfe", "3", "--solvers", "ddim,iia-ddim", "--iterations", "0", "--noises", "9"]
    few += ["--batch", "16", "--heldout", "8", "--rivals", "none"]
    script, found = tmp_path / "study.py", []
    script.write_text(COARSE + "study_command.main()")
    for name, command in (("one", [sys.executable]), ("two", TORCHRUN)):
        out = tmp_path / f"{name}-out"
        done = run([*command, str(script), "--model", "edm-digits", *few, "--out", str(out)], tmp_path / name)
        assert done.returncode == 0, done.stderr
        found.append({row["solver"]: row["rmse"] for row in json.loads((out / "study.json").read_text())["rows"]})
    assert found[1] == pytest.approx(found[0], rel=1e-2)


WRITES = """
import sys
from pathlib import Path
import numpy as np, torch
from edge_sampler.calibration.evaluate.distributed import rank, total, written

def work(progress):
    return total(np.array([1.0 + rank()]))

result = written(Path(sys.argv[1]), torch.device("cpu"), work, lambda found, path: path.write_text(str(found[0])))
if result is not None:
    print("wrote")
"""


def test_the_first_process_writes_what_all_made(tmp_path: Path) -> None:
    script = tmp_path / "writes.py"
    script.write_text(WRITES)
    done = run([*TORCHRUN, str(script), str(tmp_path / "written")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "written").read_text() == "3.0"
    assert done.stdout.count("wrote") == 1


def test_two_processes_share_an_ablation(tmp_path: Path) -> None:
    script = tmp_path / "ablation.py"
    script.write_text(COARSE + "ablation_command.main()")
    few = ["--model", "edm-digits", "--nfe", "2", "--noises", "9", "--batch", "16", "--heldout", "8"]
    done = run([*TORCHRUN, str(script), *few, "--out", str(tmp_path / "tables.md")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tables.md") == 1  # two that know nothing of each other both say that they wrote it


def test_a_process_that_dies_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "products.py"
    script.write_text(PRODUCTS)
    done = run([*TORCHRUN, str(script), str(tmp_path / "sums.npz"), "die"], tmp_path)
    assert done.returncode != 0
    assert (tmp_path / "sums.npz").exists()


LEAVES = """
import sys, time
from pathlib import Path
import torch
from edge_sampler.calibration.evaluate.distributed import joined, rank

with joined(torch.device("cpu")):
    if rank() == 0:
        time.sleep(1)
        Path(sys.argv[1]).touch()
sys.exit(not Path(sys.argv[1]).exists())
"""


def test_no_process_leaves_before_the_first_has_written(tmp_path: Path) -> None:
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    done = run([*TORCHRUN, str(script), str(tmp_path / "written")], tmp_path)
    assert done.returncode == 0, done.stderr
