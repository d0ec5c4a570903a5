"""Others' methods: small baselines written from their papers. Each ends in a plan, as ours do.

They have our fits' noises, to fit on and to hold out. They choose by the RMS error, by which all are judged.
Where a paper leaves room they get what serves them best: the best fixed solver to start from, an analytical first step
with the mean of the data (``calibration/afs.py``), a learning rate for each model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_sampler.calibration.evaluate.noise_sets import Noises
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.study.rivals.bns import bns
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.study.rivals.fixed import best_fixed
from edge_sampler.calibration.study.rivals.gits import gits
from edge_sampler.calibration.study.rivals.ld3 import ld3
from edge_sampler.calibration.study.rivals.ours import auto, refined
from edge_sampler.models.progress import ProgressBars
from edge_sampler.runtime.plan import Plan

BEST_FIXED, RIVAL, OURS = "best fixed", "rival", "ours alone"


@dataclass(frozen=True)
class Rival:
    """A way to a sampler, and of which kind it is."""

    name: str
    kind: str
    fit: Callable[[Contest], Plan]


RIVALS = (
    Rival("best-fixed", BEST_FIXED, best_fixed),
    Rival("gits", RIVAL, gits),
    Rival("ld3", RIVAL, ld3),
    Rival("bns", RIVAL, bns),
    Rival("auto", OURS, auto),
    Rival("auto-refined", OURS, refined),
)


@dataclass(frozen=True)
class Entry:
    """What a rival made: its plan, by the rival's name; ``solver`` is what it is made of. And what that cost.

    ``evaluations`` are those of one sample, a backward pass counted as two; ``seconds`` are this machine's.
    """

    plan: Plan
    solver: str
    evaluations: int
    seconds: float


def enter(rival: Rival, noises: Noises, settings: Settings, cache: Cache, progress: ProgressBars) -> Entry:
    """The rival's sampler of ``settings.nfe`` evaluations. Raises UserError where it needs what the model lacks."""
    contest = Contest(noises, settings, cache, progress)
    plan = rival.fit(contest)
    ledger = contest.ledger
    return Entry(replace(plan, solver=rival.name, report=None), plan.solver, ledger.evaluations, ledger.seconds)
