"""What PyTorch can export is exported, and what it cannot is one line that says why."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sampler import models
from edge_sampler.export.network_graph import export_denoiser
from edge_sampler.export.save import save_checked
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.errors import UserError
from tests.conftest import relative

AXES = {"length": (8, 64, 512)}


class FixedBatch(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * torch.ones(len(x), 1, 1)


class FixedAxis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.ones(64, 4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.places


class LimitedAxis(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * 2 if x.shape[1] < 100 else x


class EvenAxis(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, 2, 4).flip(2).reshape(x.shape)


class ByValue(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x / 2 if t.max() > 1 else x


class Brief(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.layer(x).float()


class Scripted(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x / 2


class Unknown(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.linalg.svd(x)[1].sum(-1)[..., None, None] * x


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (FixedBatch(), r"FixedBatch computes with a fixed number of images.*x\.shape\[0\]"),
        (FixedAxis(), r"FixedAxis fixes length to 64, though it is to be 8 to 512"),
        (LimitedAxis(), r"LimitedAxis does not take every size .*, length 8 to 512: PyTorch finds length = .*max=99"),
        (
            EvenAxis(),
            r"EvenAxis does not take every size .*: PyTorch finds .*length = 2\*_length; give length a step of 2",
        ),
        (ByValue(), r"ByValue decides by the values of its input \(.*test_network_graph\.py:\d+\), which no graph can"),
        (Brief(), "Brief computes in bfloat16, which ONNX Runtime does not on a CPU: .* and add --precision bf16"),
        (torch.jit.script(Scripted()), r"cannot be exported .*: PyTorch exports nothing of torch\.jit\.script; give"),
        (Unknown(), r"Unknown cannot be exported .*: DispatchError: No ONNX function found for .*svd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_no_graph_can_hold_is_named(network: nn.Module, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message) as raised:
        export_denoiser(models.adapt(network, ("length", 4), axes=AXES))
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


class Double(nn.Module):
    """Computes in float64 inside, and returns that."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(7, 7, 3, padding=1).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x.double()) / (1 + t.double()[:, None, None] ** 2)


class Blind(nn.Module):
    """Looks at no noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(7, 7, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("network", [Double, Blind])
@pytest.mark.parametrize("last", [16, "length"])
def test_networks_of_one_dimension(network: type[nn.Module], last: int | str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = models.adapt(network(), (7, last), axes=AXES if last == "length" else None)
    save_checked(export_denoiser(model), tmp_path / "d.onnx")
    x = torch.randn(3, 7, 16)
    with Session(tmp_path / "d.onnx") as session:
        found = session.run({"x": x.numpy(), "sigma": np.array(0.7, np.float32)})["denoised"]
    assert found.dtype == np.float32
    assert relative(found, model(x, 0.7)) < 1e-5
