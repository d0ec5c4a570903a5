"""On a GPU a fit sees what it sees on a CPU."""

import pytest
import torch

from edge_sampler import models
from edge_sampler.calibration.evaluate.network import Network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no GPU")
@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.002])
def test_answers_are_those_of_the_cpu(sigma: float) -> None:
    """To float32's rounding: TensorFloat-32's, cuDNN's default, is hundreds of times as large."""
    x = sigma * torch.randn(4, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = models.load("edm-fashion")
    expected = Network(model)(x, sigma)
    assert (Network(model.cuda())(x.cuda(), sigma).cpu() - expected).abs().max() < 1e-5
