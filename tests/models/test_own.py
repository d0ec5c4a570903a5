"""Networks of one's own, as docs/your-model.md has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edge_sampler import models
from edge_sampler.models.precond import PRECONDITIONINGS
from edge_sampler.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your-model.md").read_text()


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(# mine\.py.*?)```", PAGE, re.S)
    commands = re.findall(r"```sh\n(.*?)```", PAGE, re.S)
    (tmp_path / "mine.py").write_text(code[0])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    for line in commands[0].splitlines():
        small = ["--fit-batch", "8", "--heldout", "4", "--samples", "1"] if " export " in line else []
        command = [sys.executable, *line.split()[1:], *small]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_the_page_names_every_preconditioning() -> None:
    told = set(re.findall(r'^\| `"(\w+)"`', PAGE, re.M))
    assert told == PRECONDITIONINGS.keys() - {"iDDPMPrecond"}  # a name for EDM's files alone


class Flow(nn.Module):
    """Rectified flow toward images that are all 0.5; takes (x, t)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert 0 <= float(t.max()) <= 1
        return (x - 0.5) / t.clamp_min(1e-3)[:, None, None, None]


def test_a_flow_that_is_told_t() -> None:
    model = models.adapt(Flow(), (1, 4, 4), "FlowPrecond", num_train_timesteps=1)
    x = 0.5 + 3.0 * torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(model(x, 3.0), torch.full_like(x, 0.5))


class Wrong(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precond": "VPrecond"}, "precond is 'VPrecond'; allowed: EDMPrecond, "),
        ({"precond": "FlowPrecond", "sigma_data": 1}, "FlowPrecond: .*sigma_data"),
        ({"precond": "DDPMPrecond", "prediction_type": "x0"}, "prediction_type is 'x0'; allowed: epsilon, "),
        ({}, r"Wrong returned \[2, 4, 4\] for x \[2, 1, 4, 4\]"),
    ],
)
def test_what_cannot_be_adapted(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        models.adapt(Wrong(), (1, 4, 4), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no file"),
        ("def other(): pass", "mine.py:make failed: AttributeError"),
        ("def make(): return 1", "made a int; it should return what edge_sampler.adapt returns"),
        ("def make(): 1 / 0", "failed: ZeroDivisionError"),
        ("import nothing_of_this_name", "failed: ModuleNotFoundError"),
    ],
)
def test_files_that_make_no_model(code: str | None, message: str, tmp_path: Path) -> None:
    if code is not None:
        (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError, match=message):
        models.load(f"{tmp_path}/mine.py:make")


def test_its_weights_are_its_own(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="brings its own weights"):
        models.load("mine.py:make", random_weights=True)


OWN_PACKAGE = """
from __future__ import annotations

from dataclasses import dataclass

import edge_sampler
from models.unet import UNet


@dataclass
class Config:
    size: int = 4


def make():
    import models.unet  # once more, when it is called

    size = Config().size
    return edge_sampler.adapt(models.unet.UNet(), shape=(1, size, size))
"""
UNET = """
import torch


class UNet(torch.nn.Module):
    def forward(self, x, sigma):
        return x / (1 + sigma[:, None, None, None] ** 2)
"""


def run(folder: Path, *command: str) -> str:
    """Output of ``python COMMAND …`` in that folder, with this checkout on the path."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EDGE_SAMPLER_CACHE": str(folder / "cache")}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["models/__init__.py", "models"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A user's project with a folder ``models`` of its own, with and without an __init__.py."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    if request.param.endswith(".py"):
        (folder / request.param).touch()
    (folder / "models" / "unet.py").write_text(UNET)
    (folder / "mine.py").write_text(OWN_PACKAGE)
    return folder


def test_a_users_own_models_are_theirs(project: Path) -> None:
    fast = ("--nfe", "1", "--solver", "ddim", "--check", "0", "--samples", "1")
    run(project, "-m", "export", "--model", "mine.py:make", *fast, "--out", "here")
    elsewhere = project.parent
    run(elsewhere, "-m", "export", "--model", "project/mine.py:make", *fast, "--out", "there")
    assert "mine" in run(elsewhere, "-m", "models", "verify", "project/mine.py:make")  # started by a package `models`
    script = "from edge_sampler import console; console.main()"
    assert "mine" in run(project, "-c", script, "models", "verify", "mine.py:make")


def test_a_folder_named_runtime_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").touch()
    assert "sample" in run(tmp_path, "-c", "from edge_sampler import console; console.main()", "runtime", "--help")
    assert (
        run(tmp_path, "-c", "import edge_sampler; print(edge_sampler.load.__module__)")
        == "edge_sampler.runtime.sampler\n"
    )


def test_the_path_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; sys.path.append('theirs'); 1 / 0")
    before = sys.path[:]
    with pytest.raises(UserError, match="ZeroDivisionError"):
        models.load(f"{tmp_path}/mine.py:make")
    assert sys.path == ["theirs", *before]
    sys.path[:] = before
