"""Noises to fit on, to hold out and to judge by, each with its class where the model has classes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import BLOCK, share
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.noise import unit_noise

CALIBRATION_STREAM, CHECK_STREAM = 1, 2  # of noise: neither is ever sampled
SEEDS = 2**20  # of noises that belong to one seed; those to hold out start in their middle


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

    def part(self, rows: slice) -> "Noises":
        return Noises(self.network.part(rows), self.seeds[rows], self.stream, self.noise[rows])

    def some(self, places: Sequence[int]) -> "Noises":
        """Those at these places, to fit on none of them."""
        network = self.network.part(list(places))
        return Noises(network, [self.seeds[place] for place in places], self.stream, self.noise[list(places)])

    def first(self, count: int) -> "Noises":
        """Of the first ``count`` of all processes' noises, those that are here."""
        return self.part(slice(sum(seed % SEEDS < count for seed in self.seeds)))

    @property
    def heldout(self) -> "Noises":
        return self.part(slice(self.fitting, None))

    def blocks(self) -> Iterator[tuple[slice, "Noises"]]:
        """Some at a time, and which: as they are computed, stored and shared among processes."""
        for start in range(0, len(self), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self)))
            yield rows, self.part(rows)

    @property
    def key(self) -> dict[str, Any]:
        """What tells these noises and the network's answers to them."""
        spec, labels = self.network.model.spec, self.network.class_labels
        return {
            "weights": spec.weights_sha256,
            "guidance": spec.guidance,
            "labels": spec.class_label if labels is None else labels.tolist(),
            "stream": self.stream,
            "seeds": list(self.seeds),
        }


def to_fit(model: Denoiser, batch: int, heldout: int, seed: int) -> Noises:
    """This process's share of ``batch`` noises to fit on and of ``heldout`` more."""
    first = seed * SEEDS
    fitting = share(range(first, first + batch))
    kept = share(range(first + SEEDS // 2, first + SEEDS // 2 + heldout))
    return _noises(model, [*fitting, *kept], CALIBRATION_STREAM, len(fitting))


def to_judge(model: Denoiser, count: int) -> Noises:
    """This process's share of ``count`` noises that no fit sees."""
    return _noises(model, [*share(range(count))], CHECK_STREAM)


def _noises(model: Denoiser, seeds: Sequence[int], stream: int, fitting: int = 0) -> Noises:
    """Classes are drawn by seed too, so that an image stays the same in any set."""
    device = model.device
    noise = torch.from_numpy(unit_noise(seeds, model.spec.shape, stream)).double().to(device)
    labels = None
    if model.spec.classes:
        drawn = [np.random.default_rng([stream, seed]).integers(model.spec.classes) for seed in seeds]
        labels = torch.tensor(drawn, dtype=torch.int64).to(device)
    return Noises(Network(model, labels), seeds, stream, noise, fitting)
