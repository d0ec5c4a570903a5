"""Where this project keeps what it can make or fetch again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$EDGE_SAMPLER_CACHE``, or edge-sampler under the user's cache folder."""
    fallback = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edge-sampler"
    return Path(os.environ.get("EDGE_SAMPLER_CACHE", fallback))
