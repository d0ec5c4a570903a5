"""Noises to fit on, to hold out and to judge by, each with its class where the model has classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.distributed import BLOCK, share
from calibration.network import Network
from models.precond import Denoiser
from runtime.errors import UserError
from runtime.noise import unit_noise

CALIBRATION_STREAM, CHECK_STREAM = 1, 2  # of noise: neither is ever sampled
HELDOUT_SEEDS = 2**19  # where the held-out seeds of a set start, 2^20 of which belong to one seed


@dataclass(frozen=True)
class Noises:
    """Unit noise float64 [n, channels, height, width] of these seeds, and the network that denoises it.

    The first ``fitting`` of them fit; the others are held out.
    """

    network: Network
    seeds: Sequence[int]
    stream: int
    noise: Tensor
    fitting: int = 0

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, images: slice) -> "Noises":
        return Noises(self.network.part(images), self.seeds[images], self.stream, self.noise[images])

    @property
    def heldout(self) -> "Noises":
        return self.part(slice(self.fitting, None))

    def blocks(self) -> Iterator[tuple[slice, "Noises"]]:
        """Some at a time, and which: as they are computed, stored and shared among processes."""
        for start in range(0, len(self), BLOCK):
            images = slice(start, min(start + BLOCK, len(self)))
            yield images, self.part(images)

    @property
    def key(self) -> dict[str, Any]:
        """What tells these noises and the network's answers to them."""
        labels = self.network.class_labels
        return {
            "weights": self.network.model.spec.weights_sha256,
            "guidance": self.network.guidance,
            "labels": None if labels is None else labels.tolist(),
            "stream": self.stream,
            "seeds": list(self.seeds),
        }


def to_fit(
    model: Denoiser, batch: int, heldout: int, seed: int, guidance: float = 1.0, class_label: int | None = None
) -> Noises:
    """This process's share of ``batch`` noises to fit on and of ``heldout`` more, of one class or of all."""
    first = seed << 20
    fitting = share(range(first, first + batch))
    kept = share(range(first + HELDOUT_SEEDS, first + HELDOUT_SEEDS + heldout))
    return _noises(model, [*fitting, *kept], CALIBRATION_STREAM, guidance, class_label, len(fitting))


def to_judge(model: Denoiser, count: int, guidance: float = 1.0, class_label: int | None = None) -> Noises:
    """This process's share of ``count`` noises that no fit sees, of one class or of all."""
    return _noises(model, [*share(range(count))], CHECK_STREAM, guidance, class_label)


def _noises(
    model: Denoiser, seeds: Sequence[int], stream: int, guidance: float, class_label: int | None, fitting: int = 0
) -> Noises:
    """Classes are drawn by seed too, so that an image stays the same in any set."""
    name, classes = model.spec.name, model.spec.classes
    if guidance != 1 and not classes:
        raise UserError(f"guidance {guidance:g} needs a model with classes, and {name} has none")
    if class_label is not None and not 0 <= class_label < classes:
        raise UserError(
            f"class-label is {class_label}; {name} has {f'classes 0 to {classes - 1}' if classes else 'none'}"
        )
    device = next(model.parameters()).device
    noise = torch.from_numpy(unit_noise(seeds, model.spec.shape, stream)).double().to(device)
    labels = None
    if classes:
        drawn = [np.random.default_rng([stream, seed]).integers(classes) for seed in seeds]
        of_each = drawn if class_label is None else [class_label] * len(seeds)
        labels = torch.tensor(of_each, dtype=torch.int64).to(device)
    return Noises(Network(model, labels, guidance), seeds, stream, noise, fitting)
