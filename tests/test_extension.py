"""One new file adds a solver, a precision, a backend or a network: toys of each, in a copy of the project."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parent.parent
TOYS = {
    "calibration/solvers/toy.py": """
from edge_sampler.calibration.solvers.base import Solver, multistep
from edge_sampler.calibration.solvers.ddim import ddim

SOLVERS = (Solver("toy-solver", multistep(ddim), order=1),)
""",
    "export/precisions/toy.py": """
import onnx_ir as ir

from edge_sampler.export.precisions.base import Precision

PRECISION = Precision("toy16", ir.DataType.FLOAT16, 65504.0, float32_inside=())
""",
    "runtime/backends/toy.py": """
from edge_sampler.runtime.backends.base import Backend
from edge_sampler.runtime.backends.onnxrt import Session


class Loud(Session):
    def run(self, feed):
        print("the toy runs")
        return super().run(feed)


def open_it(bundle, precision, outputs):
    return Loud(bundle.graph("sampler.onnx"), outputs)


BACKENDS = (Backend("toy-backend", 99, lambda: None, lambda bundle, precision: None, open_it, None, False),)
""",
    "models/networks/toy.py": """
import torch


class Toy(torch.nn.Module):
    def __init__(self, resolution, channels, predicted, classes):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, predicted, 3, padding=1)

    def forward(self, x, noise):
        return self.layer(x) * noise.reshape(-1, 1, 1, 1)


NETWORKS = {"ToyNet": Toy}
""",
}
ARCHITECTURE = '{"precond": "EDMPrecond", "model_type": "ToyNet", "img_resolution": 8, "img_channels": 1}'
COMMANDS = (
    "export --model toy.json --random-weights --nfe 3 --solver toy-solver --check 0 --out bundle --precision toy16",
    "runtime sample bundle --backend toy-backend --seeds 0-3 --out grid.png",
    "runtime compare bundle --precision toy16",
    "runtime inspect bundle",
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("project")
    for room in ("calibration", "edge_sampler", "export", "models", "runtime"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for path, text in TOYS.items():
        (copy / path).write_text(text)
    return copy


def test_a_toy_of_each_runs(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text(ARCHITECTURE)
    environment = os.environ | {"PYTHONPATH": str(copied), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = ""
    for command in COMMANDS:
        room, *arguments = command.split()
        line = [warm.python(), "-m", f"edge_sampler.{room}", *arguments]
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "toy-solver" in said
    assert "the toy runs" in said
    assert (tmp_path / "bundle" / "sampler-toy16.onnx").is_file()
