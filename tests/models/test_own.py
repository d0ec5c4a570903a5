"""Networks of one's own, as docs/your-model.md has them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import models
from models.precond import PRECONDITIONINGS
from runtime.errors import UserError

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
        ({}, r"Wrong returned \[2, 4, 4\] for images \[2, 1, 4, 4\]"),
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
        ("def make(): return 1", "made a int; it should return what models.adapt returns"),
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
