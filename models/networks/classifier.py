"""Two small Fashion-MNIST classifiers of different build. Their features compare images.

FD-fashion is of the first one (``calibration/study/frechet.py``), and a sampler may be refined on it. The second one
only judges, so that a sampler which learned to please the first is found out.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from edge_sampler.models import checkpoint

WEIGHTS = Path(__file__).parent.parent / "weights" / "fashion-classifier.safetensors"
JUDGE_WEIGHTS = WEIGHTS.with_name("fashion-judge.safetensors")
SHAPE = (1, 28, 28)  # of the images they know
KNOWN = 3000  # real images whose features the judge's file has


class Classifier(nn.Module):
    """Images [n, 1, 28, 28] in [-1, 1] → logits [n, 10]; ``features(images)`` → [n, 64], what the last layer sees."""

    FEATURES = 64

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            nn.SiLU(),
            nn.GroupNorm(4, 16),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.SiLU(),
            nn.GroupNorm(8, 32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.GroupNorm(8, 64),
            nn.Conv2d(64, self.FEATURES, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(self.FEATURES, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Mix(nn.Module):
    """[n, 49, 64] → the same: residual perceptrons across patches, then across channels (arXiv 2105.01601, eq. 1)."""

    def __init__(self, patches: int, channels: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.Linear(patches, 64), nn.GELU(), nn.Linear(64, patches))
        self.channels = nn.Sequential(nn.Linear(channels, 128), nn.GELU(), nn.Linear(128, channels))
        self.norms = nn.ModuleList([nn.LayerNorm(channels), nn.LayerNorm(channels)])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.patches(self.norms[0](x).mT).mT
        return x + self.channels(self.norms[1](x))


class Mixer(nn.Module):
    """``Classifier``'s inputs and outputs from an MLP-Mixer (arXiv 2105.01601): patches of 4×4, no convolution."""

    FEATURES, PATCH, DEPTH = 64, 4, 4

    def __init__(self) -> None:
        super().__init__()
        patches = (SHAPE[1] // self.PATCH) ** 2
        self.embed = nn.Linear(self.PATCH**2, self.FEATURES)
        self.mixes = nn.Sequential(*(Mix(patches, self.FEATURES) for _ in range(self.DEPTH)))
        self.norm = nn.LayerNorm(self.FEATURES)
        self.head = nn.Linear(self.FEATURES, 10)

    def features(self, images: Tensor) -> Tensor:
        patches = unfold(images, self.PATCH, stride=self.PATCH).mT
        return self.norm(self.mixes(self.embed(patches))).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class Statistics:
    """Mean [64] and covariance [64, 64] of features, float64."""

    mean: Tensor
    covariance: Tensor


def statistics(features: Tensor) -> Statistics:
    """Of features [n, 64]."""
    return Statistics(features.double().mean(0), features.double().T.cov())


@torch.inference_mode()
def features(classifier: Classifier | Mixer, images: Tensor) -> Tensor:
    """Features [n, 64], float32, of images [n, 1, 28, 28]."""
    return torch.cat([classifier.features(part.float()) for part in torch.split(images, 500)])


def load() -> tuple[Classifier, Statistics]:
    """The first classifier, and its statistics of the 60,000 training images. Raises UserError for a damaged file."""
    classifier = Classifier()
    return classifier, _read(WEIGHTS, classifier)[0]


def load_judge() -> tuple[Mixer, Statistics, Tensor]:
    """The second one, its statistics of the 60,000 training images, and its features of ``KNOWN`` test images [n, 64].

    Raises UserError for a damaged file.
    """
    judge = Mixer()
    return judge, *_read(JUDGE_WEIGHTS, judge)


def _read(path: Path, network: Classifier | Mixer) -> tuple[Statistics, Tensor]:
    """Fills ``network``; returns its statistics of all real images, and its features of some."""
    tensors = {key: value.float() for key, value in checkpoint.read(path).tensors.items()}
    real = Statistics(tensors.pop("real_mean").double(), tensors.pop("real_covariance").double())
    some = tensors.pop("real_features", torch.empty(0))
    network.load_state_dict(tensors)
    network.eval().requires_grad_(False)
    return real, some
