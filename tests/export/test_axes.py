"""Axes whose sizes are multiples of a step, and outputs of several values for each place of an axis."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import edge_sampler
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.export.extend import profile_of
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import sample
from tests.conftest import relative
from tests.export.networks import euler

PLAN = euler([10.0, 0.5])
STEPS = {"height": (4, 4, 32, 4), "width": (4, 8, 32, 4)}


class UNet(nn.Module):
    """Takes multiples of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(2, 2, 3, 2, 1) for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.down[0](x)
        return interpolate(half + interpolate(self.down[1](half), scale_factor=2.0), scale_factor=2.0)


def pictures() -> edge_sampler.Denoiser:
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.ConvTranspose2d(2, 3, 8, 8), nn.Tanh())
    output = edge_sampler.Output("images", (3, "8*height", "8*width"))
    return edge_sampler.adapt(
        UNet(), (2, "height", "width"), "DDPMPrecond", axes=STEPS, decoder=edge_sampler.Decoder(decoder, output)
    )


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_pictures_have_several_sizes(dtype: str, tmp_path: Path) -> None:
    model = pictures()
    edge_sampler.export_bundle(model, PLAN, tmp_path / "bundle", edge_sampler.Form(dtype, 2))
    graph = onnx.load(tmp_path / "bundle" / "sampler.onnx").graph
    shapes = [[dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in graph.input]
    assert shapes == [["batch", 2, "height", "width"]]
    made = [dim.dim_param or dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim]
    assert sorted(map(str, made)) == ["3", "8*height", "8*width", "batch"]
    assert within(compare(edge_sampler.Bundle.open(tmp_path / "bundle")), 1e-4)
    with edge_sampler.load(tmp_path / "bundle") as sampler:
        for height, width in ((4, 8), (12, 32), (20, 4)):
            noise = torch.from_numpy(unit_noise([3, 5], (2, height, width))).double()
            expected = model.decode(sample(Network(model), noise, PLAN).float()).numpy()
            found = sampler.sample([3, 5], height=height, width=width)
            if dtype == "uint8":
                assert found.shape == (2, 8 * height, 8 * width, 3)
                found = found.transpose(0, 3, 1, 2) / np.float32(127.5) - 1
            assert relative(found, expected) < (1e-5 if dtype == "float32" else 2e-2)
        with pytest.raises(edge_sampler.UserError, match="width is 6; this sampler takes 4 to 32 in steps of 4"):
            sampler.sample([0], height=4, width=6)


class Fixed(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x + torch.linspace(0, 1, x.shape[2])[:, None]


def test_a_fixed_size_is_named(tmp_path: Path) -> None:
    model = edge_sampler.adapt(Fixed(), (2, "height", "width"), axes=STEPS)
    message = "Fixed fixes height to 8, though it is to be 4 to 32 in steps of 4: let its forward use x.shape"
    with pytest.raises(edge_sampler.UserError, match=message):
        edge_sampler.export_bundle(model, PLAN, tmp_path / "bundle")


def test_engines_are_for_sizes_of_the_step() -> None:
    known = {"height": Axis(4, 8, 32, 4)}
    assert profile_of(known, {"height": Axis.parse("8:8:16")}) == {"height": (8, 8, 16)}
    with pytest.raises(
        edge_sampler.UserError, match="--axis height is 8:8:18; the sampler takes 4 to 32 in steps of 4"
    ):
        profile_of(known, {"height": Axis.parse("8:8:18")})


def test_a_decoder_makes_what_its_output_says() -> None:
    torch.manual_seed(0)
    for shape, message in (
        ((3, "4*height", "8*width"), r"the decoder returned \[1, 3, 32, 64\] .*; its output says \[1, 3, 16, 64\]"),
        ((3, "8*hight", "8*width"), "the output's shape names 'hight'; the axes that have sizes are: height, width"),
        ((3, "0*height", "8*width"), r"the output's shape names '0\*height'"),
        ((3, "99999999*height", "8*width"), "a shape has the size 399999996; it must be 1 to"),
    ):
        decoder = edge_sampler.Decoder(nn.ConvTranspose2d(2, 3, 8, 8), edge_sampler.Output("images", shape))
        with pytest.raises(edge_sampler.UserError, match=message):
            edge_sampler.adapt(UNet(), (2, "height", "width"), "DDPMPrecond", axes=STEPS, decoder=decoder)
