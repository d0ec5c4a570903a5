"""What settings come to for one model: which solvers, levels and steps, and what the fit costs at the most."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from edge_sampler.calibration.afs import EACH, labels_with_means
from edge_sampler.calibration.chosen_levels import START, USUAL, Effort, choice_cost
from edge_sampler.calibration.evaluate.reference import cost, local_cost
from edge_sampler.calibration.refinement import MEMORY, iteration_cost, noise_bytes, number_of_turns
from edge_sampler.calibration.scout import SCOUT
from edge_sampler.calibration.settings import AUTO, CHOSEN, OWN, REFINED, Settings, hyphens
from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Solver
from edge_sampler.calibration.trace import AFS
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.errors import UserError

SEARCHED = 6  # steps at the most whose levels are searched for before refinement; of these a search takes little


@dataclass(frozen=True)
class Task:
    """What ``settings`` come to for one model."""

    settings: Settings
    solvers: Sequence[Solver]
    schedule: str
    target: str
    afs: bool
    means: int  # of which labels have one each; 0: one for all
    iterations: int  # of refinement, at the most

    @property
    def sampler(self) -> str | None:
        """What the plan's solver is called; None where a race is to find it."""
        asked = self.settings
        if len(self.solvers) > 1:
            return None
        if asked.solver == "auto" and not asked.refine:
            return asked.solver
        return self.solvers[0].name + AFS * self.afs + REFINED * (asked.refine > 0)

    @property
    def effort(self) -> Effort:
        """Of a search for levels: none for "auto" where refinement is to move them, but for few steps."""
        refines = self.settings.solver == "auto" and self.iterations > 0
        return START if refines and max(self.numbers) > SEARCHED else USUAL

    @property
    def evaluates(self) -> bool:
        """Whether the network is asked at all: a fixed solver on a fixed schedule is known without it."""
        fixed = len(self.solvers) == 1 and self.solvers[0].history is None
        return not fixed or self.schedule == CHOSEN or self.afs or self.iterations > 0

    @property
    def columns(self) -> int:
        """Of a plan's table, for each evaluation."""
        return 2 if any(solver.clip for solver in self.solvers) else 1

    @property
    def numbers(self) -> list[int]:
        """Of steps, that the evaluations pay for."""
        return [solver.steps(self.settings.nfe + self.afs) for solver in self.solvers]

    def candidate_cost(self, solver: Solver, noises: int, heldout: int) -> int:
        """Evaluations of one sample for one candidate of so many noises."""
        fits, settings, steps = solver.history is not None, self.settings, solver.steps(self.settings.nfe + self.afs)
        local = local_cost(solver, steps, settings.fine_steps) if fits and self.target == "local" else 0
        return (settings.nfe + local) * (noises if fits else heldout)

    def race_cost(self, heldout: int) -> int:
        """Evaluations of one sample that tell which solver is best."""
        return len(self.solvers) * self.settings.nfe * heldout if len(self.solvers) > 1 else 0

    def cost(self) -> int:
        """Evaluations of one sample, at the most; those of all processes."""
        if not self.evaluates:
            return 0
        fitting, heldout = self.settings.fit_batch, self.settings.heldout
        spent = self.afs * (self.means * min(EACH, fitting) or fitting)
        if self.schedule == CHOSEN:
            spent += choice_cost(self.numbers, fitting + heldout, fitting, self.effort)
        else:
            spent += cost(sum(self.numbers), self.settings.trajectory_steps) * (fitting + heldout)
        spent += self.race_cost(heldout) + max(
            self.candidate_cost(solver, fitting + heldout, heldout) for solver in self.solvers
        )
        entries = [1 + self.afs + self.columns * earlier for earlier in range(self.settings.nfe)]
        spent += self.iterations * iteration_cost(entries, fitting, heldout, number_of_turns(fitting))
        return spent + 2 * self.settings.nfe * heldout * (self.iterations > 0)


def task_of(model: Denoiser, settings: Settings) -> Task:
    auto, spec = settings.solver == "auto", model.spec
    schedule = settings.schedule or (CHOSEN if auto else spec.schedule)
    if schedule == OWN and model.own_levels is None:
        raise UserError(f"--schedule {OWN}: {spec.name} brings no noise levels of its own")
    derived = derivative_bytes(spec, settings.nfe, afs_of(spec, settings, refined=True))
    refines = auto and schedule == CHOSEN and derived <= MEMORY
    several = [SCOUT] if refines else [find(name) for name in AUTO]  # refined, all of them end alike
    solvers = several if auto else [find(settings.solver)]
    target = settings.fit_target or ("global" if auto else "local")
    iterations = settings.refine or int(refines)
    afs = afs_of(spec, settings, iterations > 0)
    return Task(settings, solvers, schedule, target, afs, labels_with_means(spec), iterations)


def derivative_bytes(spec: ModelSpec, nfe: int, afs: bool, columns: int = 1) -> int:
    """What the derivatives of one sample take in memory, by the numbers of a table of so many evaluations."""
    numbers = nfe + (nfe + 1) * (1 + afs) + columns * nfe * (nfe + 1) // 2
    return noise_bytes(numbers, nfe, math.prod(spec.shape), math.prod(spec.shape))


def check_refines(model: Denoiser, settings: Settings, *names: str) -> None:
    """Raises UserError where a setting of these ``names`` changes nothing, since nothing is refined."""
    asked = [name for name in names if getattr(settings, name) != getattr(Settings, name)]
    if asked and not task_of(model, settings).iterations:
        value = getattr(settings, asked[0])
        raise UserError(f"--{hyphens(asked[0])} {value} changes nothing without --refine: add that")


def afs_of(spec: ModelSpec, settings: Settings, refined: bool) -> bool:
    """Whether the first step is analytical: of "auto", where means serve all that a caller may ask for.

    One mean of all labels serves a refined sampler, which makes good what it lacks. Raises UserError for data whose
    size a call chooses: a mean has one.
    """
    if settings.afs and spec.varies:
        raise UserError(f"afs takes one mean for all data, and {spec.title}'s are of several sizes: leave it out")
    if settings.afs is not None:
        return settings.afs
    labels = [one.is_label for one in spec.inputs.conditions.values()]
    served = not labels or labels_with_means(spec) > 0 or (refined and all(labels))
    return settings.solver == "auto" and not spec.varies and served
