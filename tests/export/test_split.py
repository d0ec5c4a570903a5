"""Layers that join the noise level with conditions are split, and compute what they did."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sampler import models
from edge_sampler.export.save import save_checked
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.plan import sample
from tests.conftest import relative
from tests.export.networks import euler
from tests.export.test_conditions import case_of

PLAN = euler([20.0, 1.0])


class Joined(nn.Module):
    """One layer reads the noise level beside a condition, as ``read`` joins them."""

    def __init__(self, read: Callable[["Joined", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.embed, self.last = nn.Linear(12, 6), nn.Linear(1, 8), nn.Linear(6, 4)
        self.read = read

    def forward(self, x: Tensor, t: Tensor, told: Tensor) -> Tensor:
        return self.last(torch.tanh(self.read(self, t, told.expand(x.shape[0], -1)))) + 0.1 * x


def repeated_along(network: Joined, t: Tensor, told: Tensor) -> Tensor:
    """The level stands several times in a row."""
    return network.layer(torch.cat([t.log()[:, None].expand(told.shape[0], 8), told], 1))


def cut_twice(network: Joined, t: Tensor, told: Tensor) -> Tensor:
    """One layer reads two rows, whose parts begin at the same place and end at others."""
    level = network.embed(t.log()[:, None]).expand(told.shape[0], 8)
    first = network.layer(torch.cat([level, told], 1))
    return first + network.layer(torch.cat([told[:, :2], level, told[:, 2:]], 1))


@pytest.mark.parametrize("read", [repeated_along, cut_twice])
def test_parts_are_cut_where_the_layer_has_them(
    read: Callable[[Joined, Tensor, Tensor], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = case_of(models.adapt(Joined(read), (4,), conditions={"told": Condition((4,))}))
    noise, told = np.random.default_rng(0).standard_normal((2, 3, 4), np.float32)
    expected = sample(lambda x, s: made.model(x, s, told=torch.from_numpy(told)), torch.from_numpy(noise), PLAN)
    save_checked(made.draw("unrolled", PLAN), tmp_path / "s.onnx")
    with Session(tmp_path / "s.onnx") as session:
        assert relative(session.run({"noise": noise, "told": told})["samples"], expected) < 1e-5
