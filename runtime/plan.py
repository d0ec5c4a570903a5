"""The one idea of this project: a deterministic few-step sampler is a table.

With unit noise n and D_j the j-th network evaluation, every sampler computes, in order,

    x_k    = A[k, 0]·n + Σ_{j<k} A[k, j+1]·D_j        k = 0 … nfe-1, the network's k-th input
    D_k    = denoise(x_k, sigmas[k])
    images = A[nfe, 0]·n + Σ_j A[nfe, j+1]·D_j

So ``nfe`` noise levels and one lower-triangular matrix describe the whole sampler, with its fitted coefficients.

A plan with an analytical first step (AFS) also weights a constant m. It takes the place of the network's answer to pure
noise. Every row has one more column for it, A[k, 1]·m, after the noise's column. For a model that is told a label, such
as a class, m may be a constant of each label.

A plan that clips has two columns for each evaluation: D_j, and D_j clipped to [-clip, clip]. So a table can also hold
DDIM with ``clip_sample``, which takes its noise estimate from the answer before clipping.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.condition import label_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FitReport
from edge_sampler.runtime.inputs import Inputs
from edge_sampler.runtime.json_file import ODD, read_json, write_json

SCHEMA = 3
READ = (2, SCHEMA)  # 2 has the mean as lists of numbers


@dataclass(frozen=True)
class Plan:
    """A sampler with a fixed number of network evaluations: noise levels, and a table A of weights.

    With unit noise n and D_j the j-th evaluation, ``x_k = A[k, 0]·n + Σ_{j<k} A[k, j+1]·D_j`` is the k-th evaluation's
    input, and row nfe of A makes the samples. Fitted coefficients (arXiv 2304.11328) are in A.

    Args:
        solver: its name, for people.
        sigmas: the noise level of each evaluation, float [nfe], in the data's units, positive.
        table: A; row k holds its k+1 entries (with a mean k+2), so row lengths are 1 … nfe+1 (2 … nfe+2). Where
            it clips, they are 1, 3, 5, ….
        report: a report of the fit; None for a fixed solver.
        mean: with an analytical first step (AFS), the constant that stands where the answer to pure noise would, nested
            tuples of one sample's shape: column 1 of the table weighs it. Of a model whose one condition is a label,
            it may be as many of these, one for each label, and one more for a ``null`` that is none. Empty without.
        clip: the bound of a second column for each evaluation, its answer within [-clip, clip]; 0: no such column.

    Raises:
        UserError: if sizes disagree or a number is not finite.

    Examples:
        >>> euler = edge_sampler.Plan("euler", (80.0, 2.5), ((80.0,), (2.5, 0.96875), (0.0, 0.0, 1.0)))
        >>> euler.nfe, euler.columns, euler.afs, euler.temperature
        (2, 1, False, 1.0)
        >>> from pathlib import Path
        >>> euler.save(Path("euler.json"))
        >>> edge_sampler.Plan.load(Path("euler.json")).sha256 == euler.sha256
        True
    """

    solver: str
    sigmas: tuple[float, ...]
    table: tuple[tuple[float, ...], ...]
    report: FitReport | None = field(default=None, compare=False)
    mean: Any = ()
    clip: float = 0.0

    def __post_init__(self) -> None:
        if not self.sigmas or not all(np.isfinite(sigma) and sigma > 0 for sigma in self.sigmas):
            raise UserError("a plan needs at least one noise level, each finite and above 0")
        if not (isinstance(self.solver, str) and self.solver.isprintable()):
            raise UserError(f"a plan's solver is {self.solver!r:.40}; it must be a name in one line")
        if not (np.isfinite(self.clip) and self.clip >= 0):
            raise UserError(f"a plan's clip is {self.clip}; it must be a finite number, 0 or above")
        first, each = 1 + self.afs, self.columns
        last = first + each * self.nfe
        if [len(row) for row in self.table] != list(range(first, last + 1, each)):
            raise UserError(f"a plan of {self.nfe} evaluations needs {self.nfe + 1} rows of {first} to {last} numbers")
        if not all(np.isfinite(entry) for row in self.table for entry in row):
            raise UserError("a plan's table must be finite")
        if not 0 < self.temperature < np.inf:
            raise UserError(f"a plan's temperature is {self.temperature}; it must be a finite number above 0")
        if self.afs and not is_array(self.mean):
            raise UserError("a plan's mean must be an array of finite numbers")

    @property
    def afs(self) -> bool:
        """Whether the first step is analytical."""
        return len(self.mean) > 0

    @property
    def columns(self) -> int:
        """How many columns of the table an evaluation has."""
        return 2 if self.clip else 1

    @property
    def nfe(self) -> int:
        """Number of network (function) evaluations."""
        return len(self.sigmas)

    @property
    def temperature(self) -> float:
        """What scales the noise of the samples for which it was fitted."""
        return float(self.report.settings.get("temperature", 1.0)) if self.report else 1.0

    @cached_property
    def sha256(self) -> str:
        """Tells the sampler: of the noise levels, the table and the mean, not of names or reports."""
        told = [self.sigmas, self.table, *([self.mean] if self.afs else []), *([self.clip] if self.clip else [])]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes JSON; floats keep every bit. The mean is in base64: 3×256×256 numbers would be as many lines.

        Args:
            path: of the file.
        """
        fields = {"schema": SCHEMA, "solver": self.solver, "sigmas": self.sigmas, "table": self.table}
        fields |= {"clip": self.clip} if self.clip else {}
        fields |= {"report": self.report and self.report.record()} | ({"mean": packed(self.mean)} if self.afs else {})
        write_json(Path(path), fields)

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Reads a file that ``save`` wrote.

        Args:
            path: of the file.

        Returns:
            The plan, equal to the one that was saved, with its report.

        Raises:
            UserError: when the file is missing, damaged, or of another schema.
        """
        try:
            data = read_json(Path(path))
            if data["schema"] not in READ:
                raise UserError(
                    f"{path}: plan schema {data['schema']!r}; this version reads {READ[0]} and {SCHEMA}: fit it again, "
                    "with python -m calibration --model MODEL --nfe N"
                )
        except OSError as error:
            raise UserError(f"cannot read the plan {path}: {error.strerror}") from error
        except ODD as error:
            raise UserError(f"{path} is damaged: not a valid plan ({type(error).__name__}: {error})") from error
        try:
            return cls(
                solver=data["solver"],
                sigmas=tuple(float(sigma) for sigma in data["sigmas"]),
                table=tuple(tuple(float(entry) for entry in row) for row in data["table"]),
                report=FitReport.read(data["report"]) if data["report"] is not None else None,
                mean=unpacked(data["mean"]) if "mean" in data else (),
                clip=float(data.get("clip", 0.0)),
            )
        except (UserError, *ODD) as error:
            raise UserError(f"{path} is damaged: not a valid plan ({type(error).__name__}: {error})") from error


def nested(values: Any) -> Any:
    """An array or a tensor, as a plan keeps its mean: tuples of tuples of floats."""
    if hasattr(values, "tolist"):
        return nested(values.tolist())
    return tuple(map(nested, values)) if isinstance(values, list) else float(values)


def packed(values: Any) -> dict[str, Any]:
    """An array as JSON has it in a plan: float64, little-endian, in rows, in base64."""
    array = np.array(values, "<f8")
    return {"shape": array.shape, "float64": base64.b64encode(array.tobytes()).decode()}


def unpacked(stored: Any) -> Any:
    """What ``packed`` made, or lists, ``nested``. Raises one of ``ODD`` for anything else."""
    if isinstance(stored, list):
        return nested(np.array(stored, float))
    content = base64.b64decode(stored["float64"], validate=True)
    array = np.ndarray(stored["shape"], "<f8", content)
    if array.nbytes != len(content):
        raise ValueError(f"its mean claims {stored['shape']!s:.80} numbers and has {len(content)} bytes")
    return nested(array)


def is_array(values: Any) -> bool:
    """Whether they are finite numbers, as many in every row."""
    try:
        return np.ndim(values) > 0 and bool(np.isfinite(values).all())
    except ValueError:  # ragged
        return False


def weighted_sum(weights: Sequence[float], terms: Sequence[Any]) -> Any:
    """Σ weights·terms over the non-zero weights; terms know ``*`` and ``+``."""
    products = [weight * term for weight, term in zip(weights, terms, strict=True) if weight]
    total = products[0] if products else 0.0 * terms[0]
    for product in products[1:]:
        total = total + product
    return total


def mean_shapes(inputs: Inputs) -> list[tuple[int, ...]]:
    """Which shapes a plan's mean may have, for a network that takes ``inputs``: of one sample, or of one a label."""
    shape, label = inputs.sized(), label_of(inputs.conditions)
    return [shape, *([(label[1], *shape)] if label else [])]


def labels_told(told: Mapping[str, Any], inputs: Inputs) -> Any:
    """Of the conditions [n, …] that a network of ``inputs`` is told: its label, where that is its one condition."""
    label = label_of(inputs.conditions)
    return told.get(label[0]) if label else None


def rows_of(mean: Any, x: Any, labels: Any) -> Any:
    """What of a mean each sample of x [n, *shape] starts from: all of [*shape], and of [rows, *shape] its label's.

    Raises UserError where ``labels``, whole numbers [n], are wanted and None.
    """
    if mean.ndim < x.ndim:
        return mean
    if labels is None:
        raise UserError("the plan has a mean for each label, and no labels are told")
    return mean[labels]


def terms_before(
    noise: Any, plan: Plan, labels: Any = None, constant: Callable[[np.ndarray], Any] | None = None
) -> list[Any]:
    """What the table weighs before any evaluation: the noise [n, *shape], and the plan's mean.

    ``constant`` makes a term of the mean in float32; unless told, one like the noise, of the ``labels``.
    """
    if not plan.afs:
        return [noise]
    mean = np.array(plan.mean, np.float32)
    if constant:
        return [noise, constant(mean)]
    like_noise = getattr(noise, "new_tensor", lambda image: image.astype(noise.dtype))
    return [noise, rows_of(like_noise(mean), noise, labels)]


def sample(
    denoise: Callable[[Any, float], Any],
    noise: Any,
    plan: Plan,
    labels: Any = None,
    constant: Callable[[np.ndarray], Any] | None = None,
) -> Any:
    """Runs the plan: the only sampling loop of this project.

    Values may be NumPy arrays, PyTorch tensors, or the exporter's symbols: whatever knows ``*``, ``+`` and, for a plan
    that clips, ``clip(low, high)``.

    Args:
        denoise: called with x [n, *shape] and sigma, in turn for each evaluation; returns the clean data, shaped as x.
        noise: unit normal, [n, *shape].
        plan: the sampler.
        labels: each sample's label, whole numbers [n], which a plan with a mean for each label needs.
        constant: makes a value of the plan's mean, float32; None: one like the noise. Symbols need it.

    Returns:
        Samples, shaped as the noise.

    Examples:
        >>> from edge_sampler.runtime.plan import sample
        >>> sample(lambda x, sigma: x / (1 + sigma**2), unit_noise([0, 1], (1, 8, 8)), plan).shape
        (2, 1, 8, 8)
    """
    terms = terms_before(noise, plan, labels, constant)
    for sigma, row in zip(plan.sigmas, plan.table, strict=False):
        terms.append(denoise(weighted_sum(row, terms), sigma))
        if plan.clip:
            terms.append(terms[-1].clip(-plan.clip, plan.clip))
    return weighted_sum(plan.table[-1], terms)
