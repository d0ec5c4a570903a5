"""Where PyTorch may compute."""

from pathlib import Path

import pytest
import torch

from edge_sampler.calibration.command import main as calibrate
from edge_sampler.models.device import usable_device
from edge_sampler.models.training.command import main as train
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main


def test_what_pytorch_computes_on_is_taken() -> None:
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["meta", "x", "cpu:-1", "", "vulkan", "hpu", "cuda:99"])
def test_where_it_computes_nothing_is_told(name: str) -> None:
    with pytest.raises(UserError, match=f"^--device {name}: PyTorch cannot use it ") as told:
        usable_device(name)
    assert "\n" not in str(told.value)


def test_commands_ask_before_they_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device meta"):
        run_main(calibrate, "--model", "absent", "--nfe", "3", "--device", "meta")
    with pytest.raises(UserError, match="--device meta"):
        run_main(train, "--model", "edm-digits", "--device", "meta", "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--images", "0"), "--images is 0; it must be at least 1"),
        (("--images", str(2**41)), "--images is .*; it must be at least 1 and at most 1,099,511,627,776"),
        (("--batch", "65537"), "--batch is 65537; it must be at least 1 and at most 65,536"),
        (("--seed", "-1"), "--seed is -1; it must be at least 0"),
        (("--seed", str(2**63 - 1)), "--seed is .*; it must be at least 0 and at most 4,294,967,296"),
        (("--data", "folder"), "--data folder changes nothing: scikit-learn brings the digits; leave it out"),
    ],
)
def test_training_has_bounds(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        run_main(train, "--dataset", "digits", *arguments, "--out", f"{tmp_path}/run")
