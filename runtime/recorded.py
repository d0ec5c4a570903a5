"""What a bundle has recorded of PyTorch: results for a few seeds, and examples of conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import ODD
from edge_sampler.runtime.npz import read_npz

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_sampler.runtime.bundle import Bundle
    from edge_sampler.runtime.inputs import Inputs

INPUT = "input_"  # begins the names of conditions in reference.npz
EXAMPLE = "example_"  # and of more examples of them
HELD = 4  # every so many examples one is held out


def read_reference(bundle: Bundle) -> dict[str, np.ndarray]:
    """As ``Bundle.reference``."""
    path, nfe = bundle.file("reference.npz"), bundle.plan.nfe
    try:
        found = read_npz(path)
        seeds = found["seeds"]
        if seeds.dtype.kind not in "iu" or seeds.ndim != 1 or not len(seeds) or not seeds.min() >= 0:
            raise ValueError(f"its seeds are {seeds.dtype} {list(seeds.shape)}")
        given = {name: found[f"{INPUT}{name}"] for name in bundle.inputs.conditions}
        _, sizes = bundle.inputs.check(given, len(seeds))
        shapes = {
            "denoised": (nfe, len(seeds), *bundle.loop_inputs.sized(sizes=sizes)),
            "made": (len(seeds), *bundle.inputs.sized(bundle.output.shape, sizes)),
        }
        for name, shape in shapes.items():
            if (array := found[name]).shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not float32 {list(shape)}")
        more = {name.removeprefix(EXAMPLE): rows for name, rows in found.items() if name.startswith(EXAMPLE)}
        for name, rows in more.items():
            if rows.shape[1:] != given[name].shape[1:] or rows.dtype != given[name].dtype:
                raise ValueError(f"{EXAMPLE}{name} is {rows.dtype} {list(rows.shape)}")
            bundle.inputs.check({key: one[:1] for key, one in given.items()} | {name: rows}, len(rows))
    except (OSError, UserError, *ODD) as error:
        raise UserError(f"{path} is damaged: {error}: export the bundle again") from error
    return found


def in_turn(inputs: Inputs, name: str, numbers: Sequence[int]) -> np.ndarray:
    """The choices of that condition by their numbers, as if there were more of them: [n, …]."""
    condition = inputs.conditions[name]
    shape = inputs.sized(condition.shape)
    chosen = np.array(numbers, np.int64).reshape(-1, *[1] * len(shape)) % condition.choices
    return np.broadcast_to(chosen, (len(numbers), *shape)).copy()


def draw_examples(bundle: Bundle, count: int, held: bool | None = None) -> dict[str, np.ndarray]:
    """As ``Bundle.examples``. Fewer than ``HELD`` examples are all there is to either."""
    examples, recorded = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, condition in bundle.inputs.conditions.items():
        if condition.choices:
            examples[name] = in_turn(bundle.inputs, name, range(count))
            continue
        recorded = recorded or bundle.reference()
        rows = np.concatenate([recorded[key] for key in (f"{INPUT}{name}", f"{EXAMPLE}{name}") if key in recorded])
        if held is not None and len(rows) >= HELD:
            rows = rows[(np.arange(len(rows)) % HELD == HELD - 1) == held]
        examples[name] = rows[np.arange(count) % len(rows)]
    return examples
