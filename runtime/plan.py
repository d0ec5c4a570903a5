"""The one idea of this project: a deterministic few-step sampler is a table.

With unit noise n and D_j the j-th network evaluation, every sampler computes, in order,

    x_k    = A[k, 0]·n + Σ_{j<k} A[k, j+1]·D_j        k = 0 … nfe-1, the network's k-th input
    D_k    = denoise(x_k, sigmas[k])
    images = A[nfe, 0]·n + Σ_j A[nfe, j+1]·D_j

so that ``nfe`` noise levels and one lower-triangular matrix are the whole of it, fitted coefficients included.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import UserError

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """A sampler with a fixed number of network evaluations.

    Args:
        solver: its name, for people.
        sigmas: the noise level that each evaluation is told, float [nfe], in pixel units, positive.
        table: A above; row k holds its k+1 entries, so row lengths are 1 … nfe+1.
        calibration: how it was fitted: coefficients γ and a report, JSON values; empty for a fixed solver.

    Raises UserError when sizes disagree or a number is not finite.
    """

    solver: str
    sigmas: tuple[float, ...]
    table: tuple[tuple[float, ...], ...]
    calibration: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not self.sigmas or not all(np.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise UserError("a plan needs at least one noise level, each finite and above 0")
        if [len(row) for row in self.table] != list(range(1, self.nfe + 2)):
            raise UserError(
                f"a plan of {self.nfe} evaluations needs {self.nfe + 1} rows of 1 to {self.nfe + 1} numbers"
            )
        if not all(np.isfinite(entry) for row in self.table for entry in row):
            raise UserError("a plan's table must be finite")

    @property
    def nfe(self) -> int:
        """Number of network (function) evaluations."""
        return len(self.sigmas)

    @property
    def sha256(self) -> str:
        """Tells the sampler: of the noise levels and the table, not of names or reports."""
        return hashlib.sha256(json.dumps([self.sigmas, self.table]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes JSON; floats keep every bit."""
        fields = {"schema": SCHEMA, "solver": self.solver, "sigmas": self.sigmas, "table": self.table}
        path.write_text(json.dumps(fields | {"calibration": dict(self.calibration)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Plan":
        """Raises UserError when the file is missing, damaged, or of another schema."""
        try:
            data = json.loads(path.read_text())
            if data["schema"] != SCHEMA:
                raise UserError(f"{path}: plan schema {data['schema']!r}; this version reads {SCHEMA}")
            return cls(
                solver=str(data["solver"]),
                sigmas=tuple(float(sigma) for sigma in data["sigmas"]),
                table=tuple(tuple(float(entry) for entry in row) for row in data["table"]),
                calibration=dict(data["calibration"]),
            )
        except OSError as error:
            raise UserError(f"cannot read the plan {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a valid plan ({type(error).__name__}: {error})") from error


def weighted_sum(weights: Sequence[float], terms: Sequence[Any]) -> Any:
    """Σ weights·terms over the non-zero weights; terms know ``*`` and ``+``."""
    products = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    total = products[0] if products else 0.0 * terms[0]
    for product in products[1:]:
        total = total + product
    return total


def sample(denoise: Callable[[Any, float], Any], noise: Any, plan: Plan) -> Any:
    """Runs the plan: the only sampling loop of this project.

    ``noise`` is unit normal, [n, channels, height, width]; it and what ``denoise(x, sigma)`` returns may be NumPy
    arrays, PyTorch tensors, or the exporter's symbolic values. Returns images, shaped as the noise.
    """
    terms = [noise]
    for sigma, row in zip(plan.sigmas, plan.table, strict=False):
        terms.append(denoise(weighted_sum(row, terms), sigma))
    return weighted_sum(plan.table[-1], terms)
