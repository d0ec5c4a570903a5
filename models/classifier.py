"""A small Fashion-MNIST classifier, whose features FD-fashion compares images by (``calibration/frechet.py``)."""

from torch import Tensor, nn


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
