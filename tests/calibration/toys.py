"""Networks that answer at once, the plan of one, and files of functions that see its images."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.own import adapt
from edge_sampler.runtime.plan import Plan


class Toy(torch.nn.Module):
    """Denoises by tanh, a little otherwise in each pixel."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.linspace(0.5, 2.0, int(np.prod(shape))).view(shape))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.tanh(self.gain * x / (1 + sigma.view(-1, *[1] * (x.dim() - 1))))


def toy(shape: tuple[int, ...] = (1, 4, 4)) -> Denoiser:
    return adapt(Toy(shape), shape, sigma_min=0.01, sigma_max=10.0)


class Mixture(torch.nn.Module):
    """The exact denoiser of a mixture of Gaussians around random images: paths bend as a trained network's do."""

    def __init__(self, shape: tuple[int, ...], centres: int, width: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.centres = torch.nn.Parameter(0.5 * torch.randn(centres, *shape, generator=generator))
        self.width = width

    def forward(self, x: Tensor, sigma: Tensor, unlikely: Tensor | float = 0.0) -> Tensor:
        centres, rows = self.centres.flatten(1), x.flatten(1)
        variance = sigma.reshape(-1, 1) ** 2 + self.width**2
        nearness = (rows @ centres.T - centres.square().sum(1) / 2) / variance - unlikely
        mean = nearness.softmax(1) @ centres
        return (mean + self.width**2 / variance * (rows - mean)).view_as(x)


class OfClasses(Mixture):
    """Each class has centres of its own; no class has all of them."""

    def forward(self, x: Tensor, sigma: Tensor, classes: Tensor) -> Tensor:  # type: ignore[override]
        others = classes.amax(1, keepdim=True) - classes
        return super().forward(x, sigma, 1e4 * others.repeat_interleave(len(self.centres) // others.shape[1], 1))


def mixture() -> Denoiser:
    """As large as edm-digits' images, between the same noise levels."""
    return adapt(Mixture((1, 8, 8), 10, 0.2), (1, 8, 8), sigma_min=0.002, sigma_max=80.0)


def of_classes() -> Denoiser:
    return adapt(OfClasses((1, 8, 8), 12, 0.2), (1, 8, 8), classes=3, sigma_min=0.002, sigma_max=80.0)


MIXTURE = f"{__file__}:mixture"  # as a command is told it


def plan_of(model: Denoiser) -> Plan:
    return trace(scheme_of(find("ddim"), grid_of(model, "edm"), Settings(3)))


def file_of(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).write_text(f"import torch\n\n\ndef see(images):\n    {body}\n")
    return f"{folder / name}:see"


def calls_of(model: Denoiser) -> list[object]:
    """Grows by one at each call of the model, or of a copy of it."""
    calls: list[object] = []
    model.register_forward_hook(lambda *call: calls.append(call))
    return calls
