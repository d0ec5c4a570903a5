"""Feeds a bundle's recorded seeds to Polygraphy. In the bundle's folder (or with BUNDLE set to it):

polygraphy run sampler.onnx --onnxrt --data-loader-script PATH/TO/polygraphy_inputs.py --load-outputs reference.json
"""

import os
from collections.abc import Iterator

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.recorded import INPUT
from edge_sampler.runtime.sampler import feed_of


def load_data() -> Iterator[dict[str, np.ndarray]]:
    """One feed: the noise and conditions for which reference.json holds what PyTorch makes."""
    bundle = Bundle.open(os.environ.get("BUNDLE", "."))
    stored = bundle.reference()
    conditions = {name: stored[f"{INPUT}{name}"] for name in bundle.inputs.conditions}
    yield feed_of(bundle, stored["seeds"].tolist(), conditions)
