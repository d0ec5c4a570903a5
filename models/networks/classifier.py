"""A small Fashion-MNIST classifier, whose features FD-fashion compares images by (``calibration/study/frechet.py``)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_sampler.models import checkpoint

WEIGHTS = Path(__file__).parent.parent / "weights" / "fashion-classifier.safetensors"
SHAPE = (1, 28, 28)  # of the images it knows


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


@dataclass(frozen=True)
class Statistics:
    """Mean [64] and covariance [64, 64] of features, float64."""

    mean: Tensor
    covariance: Tensor


def statistics(features: Tensor) -> Statistics:
    """Of features [n, 64]."""
    return Statistics(features.double().mean(0), features.double().T.cov())


@torch.inference_mode()
def features(classifier: Classifier, images: Tensor) -> Tensor:
    """Features [n, 64], float32, of images [n, 1, 28, 28]."""
    return torch.cat([classifier.features(part.float()) for part in torch.split(images, 500)])


def load() -> tuple[Classifier, Statistics]:
    """The shipped classifier, and what it makes of the 60,000 training images. Raises UserError for a damaged file."""
    tensors = dict(checkpoint.read(WEIGHTS).tensors)
    real = Statistics(tensors.pop("real_mean").double(), tensors.pop("real_covariance").double())
    classifier = Classifier()
    classifier.load_state_dict({key: value.float() for key, value in tensors.items()})
    return classifier.eval().requires_grad_(False), real
