"""What an engine gets computes what PyTorch does, whatever is normalised in a network, and how."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edge_sampler import models
from edge_sampler.export.lower import keep_batch_in_reshapes, lower_group_norm
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.save import save_checked
from edge_sampler.export.tensorrt_graph import prepare_for_tensorrt
from edge_sampler.runtime.backends.onnxrt import Session
from tests.conftest import relative

CHANNELS, SIZE = 8, 6


class Rows(nn.Module):
    """LayerNorm between two reshapes that are no group norm's: over the last of [n, 16, 18]."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(18)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.reshape(x.shape[0], 16, 18)).reshape(x.shape)


class ChannelsLast(nn.Module):
    """LayerNorm over channels, as in ConvNeXt and every transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class OnceForRowsAsWell(nn.Module):
    """One group norm for images and for rows of positions, as where equal weights are stored once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.norm(x).flatten(2)).unflatten(2, x.shape[2:])


NORMS = {
    "images and rows": OnceForRowsAsWell,
    "one group": lambda: nn.GroupNorm(1, CHANNELS),
    "two groups": lambda: nn.GroupNorm(2, CHANNELS, eps=1e-3),
    "a group a channel": lambda: nn.GroupNorm(CHANNELS, CHANNELS),
    "rows": Rows,
    "channels last": ChannelsLast,
}


class Network(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(1, CHANNELS, 3, padding=1), norm, nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return self.last(torch.nn.functional.silu(self.norm(self.first(x)))) * sigma[:, None, None, None]


@pytest.fixture(params=NORMS)
def denoiser(request: pytest.FixtureRequest) -> tuple[str, models.Denoiser]:
    torch.manual_seed(0)
    network = Network(NORMS[request.param]())
    with torch.no_grad():
        for parameter in network.norm.parameters():  # ones and zeros would hide a mix-up
            parameter.copy_(torch.randn_like(parameter))
    return request.param, models.adapt(network, (1, SIZE, SIZE))


@pytest.mark.parametrize("batch", [None, 2])
def test_norms_are_lowered_and_raised_without_a_change(
    denoiser: tuple[str, models.Denoiser], batch: int | None, tmp_path: Path
) -> None:
    name, model = denoiser
    graph = export_denoiser(model)
    lower_group_norm(graph)
    keep_batch_in_reshapes(graph)
    save_checked(graph, tmp_path / "lowered.onnx")
    prepare_for_tensorrt(graph, batch)
    save_checked(graph, tmp_path / "prepared.onnx")
    x = torch.randn(2, 1, SIZE, SIZE)
    feed, expected = {"x": x.numpy(), "sigma": np.array(0.7, np.float32)}, model(x, 0.7).numpy()
    for file in ("lowered.onnx", "prepared.onnx"):
        with Session(tmp_path / file) as session:
            assert relative(session.run(feed)["denoised"], expected) < 1e-5
    count = Counter(node.op_type for node in graph.graph)
    raised = {"two groups": (1, 0), "a group a channel": (1, 0), "images and rows": (1, 1)}.get(name, (0, 1))
    assert (count["GroupNormalization"], count["LayerNormalization"]) == raised  # TensorRT errs on a single group


def test_no_scale_is_broadcast_over_what_is_normalised(digits_graph: ir.Model) -> None:
    """ONNX Runtime's CUDA kernel computes those wrongly and says nothing; below 1.24 its CPU kernel refuses them."""
    graph = digits_graph.clone()
    lower_group_norm(graph)
    norms = [node for node in graph.graph if node.op_type == "LayerNormalization"]
    assert norms
    for node in norms:
        (grouped, scale), axis = node.inputs[:2], node.attributes["axis"].as_int()
        assert grouped is not None
        assert scale is not None
        target = grouped.producer().inputs[1].const_value.numpy()  # type: ignore[union-attr]
        assert tuple(scale.shape or ()) == tuple(target[axis:])


def test_reshapes_say_that_they_keep_the_batch(digits_graph: ir.Model) -> None:
    """Then ONNX Runtime fuses what follows them."""

    def first_sizes(graph: ir.Model) -> list[int]:
        reshapes = [node for node in graph.graph if node.op_type == "Reshape"]
        told = [node.inputs[1].const_value for node in reshapes]  # type: ignore[union-attr]
        return [int(sizes.numpy()[0]) for sizes in told if sizes is not None]

    graph = digits_graph.clone()
    lower_group_norm(graph)
    assert first_sizes(graph).count(-1) >= 10
    keep_batch_in_reshapes(graph)
    assert first_sizes(graph).count(-1) <= 1  # of what is no batch: the noise level
