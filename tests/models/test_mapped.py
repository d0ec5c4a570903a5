"""Weights in a file are the weights."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edge_sampler.models import mapped
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError


def test_a_network_whose_weights_lie_in_a_file_is_the_same(
    digits: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path))
    model, x = copy.deepcopy(digits), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    places = {parameter.data_ptr() for parameter in model.parameters()}
    mapped.move_to_file(model)
    assert not places & {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(tmp_path.iterdir())  # the file has no name
    assert all(map(torch.equal, model.parameters(), digits.parameters()))
    with torch.inference_mode():
        for one in (model, digits):  # of the latter, what is in memory stays as it is
            expected = one(x, 1.0)  # its own: PyTorch rounds otherwise where weights lie at other addresses
            mapped.page_out(one, large=0)
            assert torch.equal(one(x, 1.0), expected)


def test_a_full_disk_is_one_line(digits: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="EDGE_SAMPLER_CACHE"):
        mapped.move_to_file(copy.deepcopy(digits))


@pytest.mark.parametrize(("dtype", "moves"), [(torch.float16, True), (torch.float32, False)])
def test_what_is_stored_in_float32_lies_in_its_own_file(
    dtype: torch.dtype, moves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    network = nn.Linear(4, 4).requires_grad_(False)
    save_file({name: value.to(dtype) for name, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    before = network.weight.data_ptr()
    mapped.move_widened(network, tmp_path)
    assert network.weight.data_ptr() == before  # it is small
    mapped.move_widened(network, tmp_path, large=0)
    assert (network.weight.data_ptr() != before) == moves
