"""LPIPS on AlexNet (Zhang et al., arXiv 1801.03924, eq. 1), as features between which it is the squared distance.

The weights of its layers come with the package ``lpips``, AlexNet's from where PyTorch keeps what torchvision fetched.
Neither package is imported, and nothing is downloaded.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_sampler.models import checkpoint
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command

ALEXNET, SHA256 = "alexnet-owt-7be5be79.pth", "7be5be79"  # torchvision's name ends in how its hash starts
SMALLEST = 31  # side of an image of which AlexNet's poolings leave something
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of its inputs, of colours in [-1, 1]


class LPIPS(nn.Module):
    """Images [n, 3, H, W] in [-1, 1] → five maps [n, c, h, w]; the mean over maps of the mean squares of what two
    images' maps differ by is their LPIPS.
    """

    TAKEN = (1, 4, 7, 9, 11)  # of the layers, whose numbers are torchvision's

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.weights = nn.ParameterList(torch.ones(1, c, 1, 1) for c in (64, 192, 384, 256, 256))

    def forward(self, images: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x, maps = (images - shift) / scale, list[Tensor]()
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self.TAKEN:
                weight = self.weights[len(maps)]
                unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
                maps.append((len(self.weights) * weight.shape[1] * weight).sqrt() * unit)
        return maps


def load(
    shape: Sequence[int], device: torch.device, sha256: str = SHA256
) -> tuple[Callable[[Tensor], list[Tensor]], bytes]:
    """A function of images [n, *shape], grey ones or coloured, and what tells its weights from others.

    ``sha256`` is how the hash of AlexNet's file starts. Raises UserError where images are too small or are none, and
    where package or weights are missing or damaged.
    """
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape[1:]) < SMALLEST:
        raise UserError(
            f"images are {list(shape)}: lpips is of images [1 or 3, H, W] of {SMALLEST}×{SMALLEST} or more; refine on "
            "pixels, features or FILE.py:FUNCTION"
        )
    package = find_spec("lpips")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"lpips needs the package of that name: {install_command('perceptual')}")
    folder = Path(package.submodule_search_locations[0])
    path = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not path.is_file():
        raise UserError(
            f"lpips needs AlexNet's weights at {path}, and downloads nothing by itself: fetch "
            f"https://download.pytorch.org/models/{ALEXNET} to there"
        )
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(sha256):
        raise UserError(f"{path} is not what torchvision has by that name: fetch it again")
    network = filled(checkpoint.read(path).tensors, checkpoint.read(folder / "weights" / "v0.1" / "alex.pth").tensors)
    content = checkpoint.weights_sha256(network.state_dict()).encode()
    network.to(device)
    return lambda images: network(images.expand(-1, 3, -1, -1)), content


def filled(alexnet: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> LPIPS:
    """The network of torchvision's tensors, and of those in the package ``lpips``."""
    network = LPIPS()
    tensors = {key: value for key, value in alexnet.items() if key.startswith("features.")}
    tensors |= {f"weights.{layer}": linear[f"lin{layer}.model.1.weight"] for layer in range(len(network.weights))}
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
