"""Values of a model's conditions, to fit and to judge on: rows by name, or somebody's function of seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edge_sampler.runtime.errors import UserError

Examples = Mapping[str, Any] | Callable[[Sequence[int]], Mapping[str, np.ndarray]]

HELD = 4  # one in so many rows is held out of the fit
STREAM = 2**30  # added to the seeds of each further stream, of which a function is not told


def made_by(function: Callable[[Sequence[int]], Mapping[str, Any]], seeds: list[int]) -> Mapping[str, Any]:
    """What somebody's function makes of seeds. Raises UserError where it fails."""
    try:
        return function(seeds)
    except UserError:
        raise
    except Exception as error:  # whatever it raises
        said, *_ = str(error).split("\n")
        raise UserError(
            f"examples failed for seeds such as {seeds[-1]} ({type(error).__name__}: {said}): a function of seeds has "
            "to take any whole number from 0 on; of rows, for example, take row seed % rows"
        ) from error
