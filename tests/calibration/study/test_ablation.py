"""The tables of an ablation hold the errors of what their lines name."""

import shutil
from pathlib import Path

import pytest

from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.judge import error_against_converged
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.study import ablation_command
from edge_sampler.models.denoiser import Denoiser
from tests.calibration import toys
from tests.calibration.toys import MIXTURE
from tests.conftest import run_main


def test_tables(mixture: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "study.ablation.BATCHES": (4, 16), "study.ablation.SEEDS": 2, "study.ablation.ITERATIONS": 1,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"edge_sampler.calibration.{name}", value)
    shutil.copyfile(toys.__file__, tmp_path / "classes.py")  # models are called as their files
    out = tmp_path / "tables.md"
    run_main(
        ablation_command.main, "--model", MIXTURE, "--also", f"{tmp_path}/classes.py:of_classes", "--nfe", "3",
        "--fit-batch", "8", "--heldout", "4", "--noises", "8", "--cache", str(tmp_path / "cache"), "--out", str(out),
    )  # fmt: skip
    text = out.read_text()
    cells = {cells[1].strip(): cells[2].strip() for line in text.splitlines() if len(cells := line.split("|")) > 3}
    assert "vp, ipndm" in cells
    assert [label for label in cells if label.startswith("edm, r = 1, ")] == ["edm, r = 1, 4", "edm, r = 1, 8"]
    assert "± " in cells["chosen, r = 2, 4"]
    heun = calibrate(mixture, Settings(3, "heun"))
    assert float(cells["Heun (heun)"]) == pytest.approx(error_against_converged(mixture, heun, 8), rel=0.02)
    assert cells["fitted on toys-mixture"] != cells["not fitted: ipndm, edm grid"]
    assert len({cells[f"fitted on classes-of_classes, class {k}"] for k in range(3)}) == 3
