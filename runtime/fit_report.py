"""How a plan was fitted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FittedStep:
    """One step's γ, and its root-mean-square error against the target on held-out noises, without and with γ.

    ``gamma`` is the departure from the base solver's own weights; all zero where it did not help. Of a refined plan it
    is of before refinement, which replaces the whole table.
    """

    gamma: tuple[float, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True)
class FitReport:
    """What a fit belongs to, how it was made, and what it reached.

    Args:
        model, fingerprint: the model, for people, and for comparing (``ModelSpec.fingerprint``).
        settings: of the fit, JSON values.
        target, schedule: "local" or "global"; the noise levels' name.
        heldout: how many noises judged it.
        heldout_rms_error: of the final samples, against the converged ones, in the data's units.
        steps: γ, and errors of each step.
        compared: mean error by solver, of those that were tried.
        refinement: mean error after each iteration, the first before any; of a quantised sampler the geometric mean.
        examples: how many values of the conditions were fitted on, and how many others judged; () without such.
        evaluations: of the network on one sample.
        seconds: that it took.
    """

    model: str
    fingerprint: str
    settings: Mapping[str, Any]
    target: str
    schedule: str
    heldout: int
    heldout_rms_error: float
    steps: tuple[FittedStep, ...]
    compared: Mapping[str, float]
    refinement: tuple[float, ...]
    examples: tuple[int, ...]
    evaluations: int
    seconds: float

    def record(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "FitReport":
        """What ``record`` made. Raises KeyError, TypeError or ValueError for anything else."""
        steps = (
            FittedStep(tuple(map(float, step["gamma"])), float(step["error_before"]), float(step["error_after"]))
            for step in recorded["steps"]
        )
        return cls(
            model=str(recorded["model"]),
            fingerprint=str(recorded["fingerprint"]),
            settings=dict(recorded["settings"]),
            target=str(recorded["target"]),
            schedule=str(recorded["schedule"]),
            heldout=int(recorded["heldout"]),
            heldout_rms_error=float(recorded["heldout_rms_error"]),
            steps=tuple(steps),
            compared={str(name): float(error) for name, error in recorded["compared"].items()},
            refinement=tuple(map(float, recorded["refinement"])),
            examples=tuple(map(int, recorded["examples"])),
            evaluations=int(recorded["evaluations"]),
            seconds=float(recorded["seconds"]),
        )
