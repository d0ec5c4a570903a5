"""A model of somebody's own file, FILE.py:FUNCTION, in their own project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_sampler import models
from edge_sampler.runtime.errors import UserError
from tests import warm

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (None, "no file"),
        ("def other(): pass", "mine.py has no function make"),
        ("def make(): return 1", "made a int; it should return what edge_sampler.adapt returns"),
        ("def make(): 1 / 0", "failed: ZeroDivisionError"),
        ("import nothing_of_this_name", "failed: ModuleNotFoundError"),
        ("import sys; sys.exit(3)", "failed: SystemExit: 3"),
        ("def make(): raise SystemExit", "failed: SystemExit"),
        ("def make(): raise GeneratorExit", "failed: GeneratorExit"),
        ("def make(: pass", "failed: SyntaxError: invalid syntax"),
        ("class Odd(BaseException): pass\ndef make(): raise Odd(3)", r"failed: \S*Odd: 3$"),
        (
            "class Mute(Exception):\n    def __str__(self): 1 / 0\ndef make(): raise Mute",
            r"failed: \S*Mute: <exception str\(\) failed>$",
        ),
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
    done = subprocess.run([warm.python(), *command], cwd=folder, env=environment, capture_output=True, text=True)
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
