"""Unit noise by seed: one counter-based stream a seed, so an image never depends on the batch it is made in."""

from collections.abc import Sequence

import numpy as np

from edge_sampler.runtime.errors import UserError

SEEDS = 2**63  # seeds are 0 … SEEDS - 1
CALIBRATION_STREAM = 1  # of noises that something is fitted on; they are never sampled


def unit_noise(seeds: Sequence[int], shape: Sequence[int], stream: int = 0) -> np.ndarray:
    """Normal noise, float32 [len(seeds), *shape], from NumPy's Philox generator.

    Args:
        seeds: whole numbers, 0 to 2^63 - 1.
        shape: the shape of one sample.
        stream: separates purposes: 0 is for images, others keep the noises of calibration from ever being sampled.

    Returns:
        A row for each seed. It depends on its seed and the stream alone.

    Raises:
        UserError: for a seed out of range.

    Examples:
        >>> bool((unit_noise([3, 7], (1, 8, 8))[1] == unit_noise([7], (1, 8, 8))[0]).all())
        True
    """
    noise = np.empty((len(seeds), *shape), np.float32)
    for place, seed in enumerate(seeds):
        if not 0 <= seed < SEEDS:
            raise UserError(f"seed {seed} is out of range; seeds are 0 to {SEEDS - 1}")
        stream_of_seed = np.random.Generator(np.random.Philox(key=int(seed) + (stream << 64)))
        stream_of_seed.standard_normal(out=noise[place, ...], dtype=np.float32)
    return noise


def noise_of(seeds: Sequence[int], shape: Sequence[int], temperature: float, stream: int = 0) -> np.ndarray:
    """What a sampler starts from: ``unit_noise`` times a temperature, float32 [len(seeds), *shape]."""
    return unit_noise(seeds, shape, stream) * np.float32(temperature)
