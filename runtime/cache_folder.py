"""The folder for what this project can make or fetch again."""

import os
from pathlib import Path

from edge_sampler.runtime.errors import UserError

OWN, SHARED = "EDGE_SAMPLER_CACHE", "XDG_CACHE_HOME"  # environment variables


def cache_folder() -> Path:
    """``$EDGE_SAMPLER_CACHE``, or edge-sampler under the user's cache folder.

    Raises UserError where the user has no home, as in some containers. Source: the XDG Base Directory Specification, by
    which a path that is empty or relative counts as none.
    """
    if own := os.environ.get(OWN):
        return Path(own)
    shared = Path(os.environ.get(SHARED, ""))
    try:
        return (shared if shared.is_absolute() else Path.home() / ".cache") / "edge-sampler"
    except RuntimeError as error:
        raise UserError(f"this user has no home folder: set {OWN} to a folder, for what can be kept") from error
