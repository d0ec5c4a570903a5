"""How a plan was fitted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FittedStep:
    """One step's fit.

    Args:
        gamma: γ of arXiv 2304.11328, the departure from the base solver's own weights; all zero where it did not help.
            Of a refined plan it is of before refinement, which replaces the whole table.
        error_before: RMS error against the step's target on held-out noises, without γ, in the data's units.
        error_after: the same with γ.

    Examples:
        >>> edge_sampler.fit(model, nfe=1, solver="iia-ddim").report.steps[0].gamma  # nothing earlier to weigh
        ()
    """

    gamma: tuple[float, ...]
    error_before: float
    error_after: float


@dataclass(frozen=True)
class FitReport:
    """A fit's model, its settings, and its errors.

    Args:
        model: the model, for people.
        fingerprint: the model, for comparing: ``ModelSpec.fingerprint``.
        settings: the settings of the fit, JSON values.
        target: "local" or "global".
        schedule: the noise levels' name.
        heldout: the number of held-out noises.
        heldout_rms_error: RMS error of the final samples against the converged ones, in the data's units.
        steps: γ and errors of each step.
        compared: mean error of each solver that the fit tried.
        refinement: mean error before refinement and after each iteration; for a quantised sampler the geometric mean.
        examples: how many values of the conditions fitted, and how many others judged; () without conditions.
        evaluations: the number of network evaluations of one sample, those of kept results among them.
        seconds: the duration of the fit.

    Examples:
        >>> report = edge_sampler.fit(model, nfe=1, solver="iia-ddim").report
        >>> report.model, report.target, report.schedule, report.settings["fit_batch"]
        ('Shrink', 'local', 'edm', 128)
        >>> type(report).read(report.record()) == report
        True
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
        """As a plan's file holds it.

        Returns:
            JSON values.
        """
        return asdict(self)

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> "FitReport":
        """The report of a plan's file.

        Args:
            recorded: what ``record`` made.

        Returns:
            The report.

        Raises:
            KeyError, TypeError, ValueError: for anything else.
        """
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
