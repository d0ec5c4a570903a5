"""Feeds a bundle's recorded seeds to Polygraphy. In the bundle's folder (or with BUNDLE set to it):

polygraphy run sampler.onnx --onnxrt --data-loader-script PATH/TO/polygraphy_inputs.py --load-outputs reference.json
"""

import os
from collections.abc import Iterator

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.sampler import make_feed


def load_data() -> Iterator[dict[str, np.ndarray]]:
    """One feed: the noise (and classes) for which reference.json holds PyTorch's images."""
    bundle = Bundle.open(os.environ.get("BUNDLE", "."))
    with np.load(bundle.file("reference.npz"), allow_pickle=False) as stored:
        yield make_feed(unit_noise(stored["seeds"].tolist(), bundle.shape), stored["class_labels"], bundle.classes)
