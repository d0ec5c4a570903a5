"""What one process does, or two do together: python -m tests.calibration.evaluate.jobs FOLDER.

RANK, WORLD_SIZE and MASTER_ADDR are as torchrun sets them; PORTS are as many as there are jobs, each of which joins the
processes anew.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_sampler.calibration import command
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.evaluate.distributed import joined, rank
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.fit import gram
from edge_sampler.calibration.refinement import normal_equations, parameters, refine
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.study import ablation_command
from edge_sampler.calibration.study import command as study_command
from edge_sampler.calibration.study.rivals import bns
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.learn import Lesson, gradient_at
from edge_sampler.calibration.trace import trace
from edge_sampler.calibration.views import PIXELS
from tests.calibration.toys import MIXTURE, mixture
from tests.conftest import run_main

FIT = ("--solver", "iia-ipndm", "--fit-target", "global", "--fit-batch", "64", "--heldout", "64", "--fine-steps", "4")
FEW = ("--fit-batch", "16", "--heldout", "8", "--noises", "9")
FEW_TRIALS = {
    "study.ablation.BATCHES": (),
    "study.ablation.SEEDS": 1,
    "study.ablation.ITERATIONS": 1,
}


def products(folder: Path) -> None:
    model = mixture()
    with joined(torch.device("cpu")):
        noises = to_fit(model, 64, 64, 0)
        fit = noises.part(slice(0, noises.fitting))
        found = gram([fit.network(fit.noise * sigma, sigma) for sigma in (80.0, 2.0, 0.1)])
        plan = trace(scheme_of(find("ddim"), grid_of(model, "edm"), Settings(3)))
        matrix, slope = normal_equations(fit, torch.zeros_like(fit.noise), plan, PIXELS, NO_CACHE)
        refined = refine(plan, noises, 0.1 * noises.noise, 1, NO_CACHE)
        lesson = Lesson("", lambda values: bns.plan_of(values, 3, 80.0), bns.parameters_of(plan), torch.mean, (), 0)
        turn = Contest(noises, Settings(3))
        turn.__dict__["goal"] = torch.zeros_like(noises.noise)
        state = {"now": lesson.start, "shift": np.zeros(0)}
        learned = np.stack([gradient_at(turn, lesson, plan, state, iteration) for iteration in (0, 1)])
        if rank() == 0:
            made = {"refined": parameters(refined.plan), "errors": np.array(refined.errors)}
            sums = {"learned": learned, "products": found, "matrix": matrix, "slope": slope}
            np.savez(folder / "products.npz", allow_pickle=False, **made, **sums)


def fit(folder: Path) -> None:
    run_main(command.main, "--model", MIXTURE, "--nfe", "3", *FIT, "--out", str(folder / "plan.json"))


def study(folder: Path) -> None:
    few = ("--nfe", "3", "--solvers", "ddim,iia-ddim", "--iterations", "0", "--rivals", "none", *FEW)
    run_main(study_command.main, "--model", MIXTURE, *few, "--out", str(folder / "study"))


def ablation(folder: Path) -> None:
    run_main(ablation_command.main, "--model", MIXTURE, "--nfe", "2", *FEW, "--out", str(folder / "tables.md"))


JOBS = {"products": products, "fit": fit, "study": study, "ablation": ablation}


def run(name: str, folder: Path) -> None:
    """With few trials, and a cache of the folder's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGE_SAMPLER_CACHE", str(folder / "cache"))
        for constant, value in FEW_TRIALS.items():
            patch.setattr(f"edge_sampler.calibration.{constant}", value)
        JOBS[name](folder)


if __name__ == "__main__":
    for name, port in zip(JOBS, os.environ["PORTS"].split(","), strict=True):
        os.environ["MASTER_PORT"] = port
        run(name, Path(sys.argv[1]))
