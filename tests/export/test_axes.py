"""Axes whose sizes are multiples of a step, and outputs of several values for each place of an axis."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

import edge_sampler
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.export.build_engine import build, engine_for, shapes_of
from edge_sampler.export.extend import profile_of
from edge_sampler.models import loading
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.condition import Axis
from edge_sampler.runtime.engine_record import Batch
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


def shapes_in(folder: Path) -> dict[str, list[int | str]]:
    """Of the inputs of its sampler."""
    inputs = onnx.load(folder / "sampler.onnx").graph.input
    return {one.name: [dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim] for one in inputs}


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_pictures_have_several_sizes(dtype: str, tmp_path: Path) -> None:
    model = pictures()
    edge_sampler.export_bundle(model, PLAN, tmp_path / "bundle", edge_sampler.Form(dtype, 2))
    graph = onnx.load(tmp_path / "bundle" / "sampler.onnx").graph
    assert shapes_in(tmp_path / "bundle") == {"noise": ["batch", 2, "height", "width"]}
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


class Upscaler(nn.Module):
    """Told pictures of twice the size, and what an encoder makes of pictures of four times it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.same = nn.Conv2d(1, 2, 2, 2), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, seen: Tensor, twice: Tensor) -> Tensor:
        return self.same(torch.cat([x, seen], 1)) + self.twice(twice)


class Encode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Conv2d(3, 2, 4, 4)

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.layer(image),)


def upscaler() -> edge_sampler.Denoiser:
    conditions = {
        "seen": edge_sampler.Condition((2, "height", "width")),
        "twice": edge_sampler.Condition((1, "2*height", "2*width")),
    }
    image = edge_sampler.Condition((3, "4*height", "4*width"))
    encoder = edge_sampler.Encoder(Encode(), {"image": image}, ("seen",))
    examples = {"image": unit_noise(range(8), (3, 16, 32)), "twice": unit_noise(range(8), (1, 8, 16))}
    told = {"axes": STEPS, "conditions": conditions, "encoder": encoder, "examples": examples}
    return edge_sampler.adapt(Upscaler(), (2, "height", "width"), "DDPMPrecond", **told)  # type: ignore[arg-type]


@pytest.mark.parametrize("again", [False, True], ids=["of_pytorch", "of_its_bundle"])
def test_conditions_are_multiples_of_an_axis(again: bool, tmp_path: Path) -> None:
    model = upscaler()
    edge_sampler.export_bundle(model, PLAN, tmp_path / "bundle")
    if again:
        other = loading.load(str(tmp_path / "bundle" / "denoiser.onnx"))
        edge_sampler.with_examples(other, model.examples)
        edge_sampler.export_bundle(other, PLAN, tmp_path / "again")
    folder = tmp_path / ("again" if again else "bundle")
    assert shapes_in(folder) == {
        "noise": ["batch", 2, "height", "width"],
        "image": ["batch", 3, "4*height", "4*width"],
        "twice": ["batch", 1, "2*height", "2*width"],
    }
    with edge_sampler.load(folder) as sampler:
        for height, width in ((4, 8), (12, 32)):
            told: dict[str, Any] = {
                "image": unit_noise([7, 8], (3, 4 * height, 4 * width)),
                "twice": unit_noise([5, 6], (1, 2 * height, 2 * width)),
            }
            noise = torch.from_numpy(unit_noise([3, 5], (2, height, width))).double()
            network = Network(model, model.encode(told))
            expected = sample(network, noise, PLAN).float().numpy()
            assert relative(sampler.sample([3, 5], **told), expected) < 1e-5
        told["twice"] = told["twice"][..., :-2]
        message = r"twice has 62 of 2\*width, which is width 31; this sampler takes 4 to 32 in steps of 4"
        with pytest.raises(edge_sampler.UserError, match=message):
            sampler.sample([3, 5], **told)


def test_engines_take_multiples_of_an_axis(tmp_path: Path) -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this system")
    edge_sampler.export_bundle(upscaler(), PLAN, tmp_path / "bundle")
    axes = {name: sizes[:3] for name, sizes in STEPS.items()}
    engine = replace(engine_for("tensorrt-rtx", "sm86", "fp32", Batch(1, 2, 3)), axes=axes)
    path = tmp_path / "bundle" / "sampler.onnx"
    assert len(bytes(build(ir.load(path), engine).engine_bytes)) > 1000
    logger = rtx.Logger(rtx.Logger.ERROR)
    builder = rtx.Builder(logger)
    network = builder.create_network(0)
    assert rtx.OnnxParser(network, logger).parse_from_file(str(path))
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    assert {one.name: list(shapes_of(one, engine)) for one in inputs} == {
        "noise": [[1, 2, 4, 4], [2, 2, 4, 8], [3, 2, 32, 32]],
        "image": [[1, 3, 16, 16], [2, 3, 16, 32], [3, 3, 128, 128]],
        "twice": [[1, 1, 8, 8], [2, 1, 8, 16], [3, 1, 64, 64]],
    }


def test_engines_are_for_sizes_of_the_step() -> None:
    known = {"height": Axis(4, 8, 32, 4)}
    assert profile_of(known, {"height": Axis.parse("8:8:16")}) == {"height": (8, 8, 16)}
    with pytest.raises(
        edge_sampler.UserError, match="--axis height is 8:8:18; the sampler takes 4 to 32 in steps of 4"
    ):
        profile_of(known, {"height": Axis.parse("8:8:18")})


@pytest.mark.parametrize("sizes", ["12:16:20", "4:4:4"])
def test_an_engine_takes_the_usual_size(sizes: str) -> None:
    """A server warms up with it, and so does whoever names no size."""
    with pytest.raises(edge_sampler.UserError, match=f"--axis height is {sizes}, without 8: who names no size"):
        profile_of({"height": Axis(4, 8, 32, 4)}, {"height": Axis.parse(sizes)})


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
