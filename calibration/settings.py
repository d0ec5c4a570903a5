"""What to calibrate, checked."""

import math
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from edge_sampler.calibration.evaluate.noise_sets import SEEDS
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS
from edge_sampler.calibration.fit import RIDGE
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.trace import AFS
from edge_sampler.calibration.views import PIXELS, check_name
from edge_sampler.models.arguments import check_kinds
from edge_sampler.runtime.errors import UserError

TARGETS = ("local", "global")
REFINED_ERRORS = {"mean": 1, "rms": 2}  # what refinement may lower, and of which power of images' errors it is a mean
REFINED = "-refined"  # ends the name of a solver whose plan is refined
CHOSEN = "chosen"  # the schedule that is measured, calibration/chosen_levels.py
OWN = "own"  # the schedule that a model brings
SHARED, FEWEST, MOST = 560, 64, 128  # noises to fit on by default: the first over nfe, but within the others
AUTO = ("iia-ipndm", "iia-ddim", "iia-dpmpp-2m", "ipndm")  # the best on chosen levels, docs/study.md

MOST_NOISES = MOST_STEPS = 2**20  # nobody has waited for as many
BOUNDS = {  # the least and the largest value of a setting
    "nfe": (1, 1000),  # of a graph that has the network so many times
    "fine_steps": (2, MOST_STEPS),
    "reference_steps": (1, MOST_STEPS),
    "fit_batch": (2, SEEDS // 2),
    "heldout": (2, SEEDS // 2),
    "ridge": (0, 10**6),  # which leaves nothing of a fit
    "seed": (0, 2**63 // SEEDS - 1),
    "refine": (0, MOST_STEPS),
}


def hyphens(name: str) -> str:
    """A field's name as the command line's option has it."""
    return name.replace("_", "-")


def noises_for(nfe: int, refine: int, refine_error: str) -> tuple[int, int]:
    """How many noises fit, and are held out, by default: more for a refinement that is asked for.

    Else a fit costs about the same for any ``nfe``.
    """
    if refine_error == "rms":  # few of them decide it
        return 1024, 512
    return (256, 128) if refine else (min(max(SHARED // nfe, FEWEST), MOST), 32)


@dataclass(frozen=True)
class Settings:
    """The options of a fit by Improved Integration Approximation (arXiv 2304.11328).

    Args:
        nfe: the exact number of network evaluations.
        solver: a name of ``ALL_SOLVERS``, or "auto": iia-ddim on chosen levels, refined in one iteration, unless
            ``refine`` asks for more. With another ``schedule``, or where the derivatives of a sample take more than
            2 GB, the best of four that are fitted, and not refined.
        schedule: a name of ``SCHEDULES``; "chosen": the levels between which this model's steps err least; or "own":
            the model's own levels, which pipelines have. None: chosen for "auto", else the model's default.
        fit_target: "local" is the paper's (fine steps from the coarse state). "global" aims at the fine trajectory from
            the same noise, so a step also repairs errors of earlier steps. None: global for "auto", else local.
        history: the paper's r; None is each solver's own (0 for biia-edm, 1 for the others).
        fine_steps: the paper's M, the number of fine steps in one step of the sampler.
        reference_steps: at least so many fine steps make the trajectory and the images that a fit aims at. Chosen
            levels have fine steps of their own.
        fit_batch: the paper's |B|, the number of noises to fit on. None: 256 with ``refine``, else 560 divided by
            ``nfe``, but 64 to 128; for the RMS error 1,024.
        heldout: the number of further noises, which judge every step and the choice of solver. None: 128 with
            ``refine``, else 32; for the RMS error 512.
        ridge: relative weight of the pull toward the base solver. With 1e-4 accuracy is the same as with less. It
            halves the largest γ where past gradients hardly differ, and so the effect of float32's rounding.
        seed: the seed of the noises, and of the values of conditions.
        temperature: scales the noises of the fit, for a sampler that is called with the same temperature.
        afs: whether the first step is analytical (calibration/afs.py); the saved evaluation pays for one more step.
            None: only for "auto", and only where means serve all that a caller may give: one mean without conditions,
            and one for each class. Of several labels, or very many classes, one mean serves a refined sampler.
        refine: the largest number of iterations of joint refinement after the fit; 0: none, but for "auto".
        refine_on: what refinement compares (calibration/views.py): one of ``VIEWS``, or FILE.py:FUNCTION.
        refine_error: what it lowers: "mean", the mean of images' RMS errors, or "rms", the RMS error of them all.
        paper: whether to use γ as in the paper: none in the first and the last step, and in all others, whatever
            held-out noises say.

    Raises:
        UserError: for a value of another type or out of range, and for unknown names.

    Examples:
        >>> edge_sampler.Settings(nfe=6, solver="iia-ddim", refine=2).sampler
        'iia-ddim-refined'
        >>> [edge_sampler.Settings(nfe).fit_batch for nfe in (4, 8, 20)]
        [128, 70, 64]
        >>> edge_sampler.Settings(nfe=5, solver="iia-ddim").as_in_the_paper().fit_batch
        16
        >>> edge_sampler.Settings(nfe=20, fine_steps=10).trajectory_steps
        200
    """

    nfe: int
    solver: str = "auto"
    schedule: str | None = None
    fit_target: str | None = None
    history: int | None = None
    fine_steps: int = 10
    reference_steps: int = REFERENCE_STEPS
    fit_batch: int = None  # type: ignore[assignment]  # an int once it is made
    heldout: int = None  # type: ignore[assignment]
    ridge: float = RIDGE
    seed: int = 0
    temperature: float = 1.0
    afs: bool | None = None
    refine: int = 0
    refine_on: str = PIXELS.name
    refine_error: str = "mean"
    paper: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.generic):  # which JSON does not know
                object.__setattr__(self, name, value.item())
        by_default = [name for name in ("fit_batch", "heldout") if getattr(self, name) is None]
        check_kinds({k: v for k, v in vars(self).items() if k not in by_default}, Settings, least=-math.inf)
        fitting, heldout = noises_for(max(1, self.nfe), self.refine, self.refine_error)
        for name in by_default:
            object.__setattr__(self, name, fitting if name == "fit_batch" else heldout)
        if self.solver != "auto":
            find(self.solver)
        for name, (least, most) in BOUNDS.items():
            if not (value := getattr(self, name)) >= least:
                raise UserError(f"{hyphens(name)} is {value}; it must be at least {least}")
            if value > most:
                raise UserError(f"{hyphens(name)} is {value}; it must be at most {most:,}")
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature}; it must be above 0 and finite")
        if self.schedule not in (*SCHEDULES, CHOSEN, OWN, None):
            raise UserError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}, {CHOSEN}, {OWN}")
        if self.fit_target not in (*TARGETS, None):
            raise UserError(f"unknown fit-target {self.fit_target!r}; known: {', '.join(TARGETS)}")
        check_name(self.refine_on)
        if self.refine_error not in REFINED_ERRORS:
            raise UserError(f"unknown refine-error {self.refine_error!r}; known: {', '.join(REFINED_ERRORS)}")
        if self.history is not None and not 0 <= self.history < self.nfe:
            raise UserError(f"history is {self.history}; with nfe {self.nfe} it may be 0 to {self.nfe - 1}")

    def as_in_the_paper(self) -> "Settings":
        """The settings of arXiv 2304.11328: |B| = 200 for Heun's solvers and 16 for the others, M = 3, no ridge.

        Returns:
            Settings of this solver, NFE, schedule, history, reference steps and seed, and for the rest the paper's.

        Raises:
            UserError: for "auto", which is ours, and where something else was asked for than the paper's.
        """
        if self.solver == "auto" or find(self.solver).history is None:
            raise UserError(f"--paper is for one of its fitted solvers, such as iia-edm or iia-ddim, not {self.solver}")
        others = Settings(
            self.nfe,
            self.solver,
            self.schedule,
            history=self.history,
            reference_steps=self.reference_steps,
            seed=self.seed,
        )
        if changed := [name for name, value in asdict(others).items() if value != getattr(self, name)]:
            raise UserError(f"--paper sets {hyphens(changed[-1])} itself: leave it out, or leave --paper out")
        batch = 16 if find(self.solver).once_a_step else 200
        return replace(others, fit_target="local", fine_steps=3, fit_batch=batch, ridge=0.0, paper=True)

    @property
    def trajectory_steps(self) -> int:
        """Of the fine trajectory: so many that it has converged, and that each step has ``fine_steps``."""
        return max(self.reference_steps, self.fine_steps * self.nfe)

    @property
    def sampler(self) -> str:
        """What the plan's solver is called; "auto" until it is known which one that is."""
        name = self.solver if self.solver == "auto" else find(self.solver).name
        return name + AFS * bool(self.afs) + REFINED * bool(self.refine)


OF_A_FIT = tuple(field.name for field in fields(Settings) if field.name != "nfe")  # they change nothing of a plan
