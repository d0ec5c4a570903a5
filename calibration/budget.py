"""The best fit that a budget of evaluations, or of time, allows. It first leaves out what matters least.

The order is what the ablation found (docs/study.md): noises down to 64, whose γ is nearly that of 128; iterations of
refinement; more noises; and last all solvers but one and chosen levels, in place of which comes a schedule.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_sampler.calibration.evaluate.distributed import processes, rank, total
from edge_sampler.calibration.forecast import announce, forecast, slower_evaluation
from edge_sampler.calibration.scout import SCOUT
from edge_sampler.calibration.settings import CHOSEN, Settings
from edge_sampler.calibration.task import task_of
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """``number`` of evaluations of one sample, where ``unit`` is empty, or of seconds, minutes or hours (s, m, h)."""

    number: float
    unit: str

    @classmethod
    def read(cls, text: str) -> "Budget":
        """``20000``, ``90s``, ``10m`` or ``1.5h``. Raises UserError for anything else."""
        found = re.fullmatch(r"(\d{1,15})()|(\d{1,15}(?:\.\d{1,15})?)([smh])", text)
        number, unit = (found[1] or found[3], found[4] or "") if found else ("0", "")
        if not float(number) > 0:
            raise UserError(f"--budget {text}: expected evaluations, such as 20000, or a time, such as 90s, 10m or 2h")
        return cls(float(number), unit)

    def __str__(self) -> str:
        return f"{self.number:g}{self.unit}" if self.unit else f"{self.number:,.0f} evaluations"

    def evaluations(self, model: Denoiser, towards: Denoiser | None = None) -> int:
        """Evaluations of one sample that it allows; of a time, as many as this machine makes in it, by timing one.

        ``towards`` as for ``forecast``.
        """
        if not self.unit:
            return int(self.number)
        seconds = total(np.array([slower_evaluation(model, towards)[0]]))[0] / processes()  # the same for all of them
        return int(self.number * UNITS[self.unit] / seconds * processes()) * model.spec.branches


@dataclass(frozen=True)
class Saving:
    """One thing to leave out of a fit: the settings that change, and words for what remains.

    A saving takes the place of an earlier one of the same ``kind``.
    """

    kind: str
    words: str
    changes: Mapping[str, Any]


def afford(model: Denoiser, settings: Settings, budget: Budget | None, towards: Denoiser | None = None) -> Settings:
    """The settings that a budget allows. It says on standard error what is left out, and what the fit will take.

    Without a budget all are allowed. ``towards`` is the model that the fit aims at. Raises what ``within`` raises.
    """
    if budget is None:
        announce(model, settings, towards)
        return settings
    allowed, left_out = within(model, settings, budget.evaluations(model, towards))
    if rank() == 0:
        print(f"budget of {budget}: {', '.join(left_out) or 'nothing is left out'}", file=sys.stderr)
        print(forecast(model, allowed, towards) or "a fixed solver at fixed levels needs no fit", file=sys.stderr)
    return allowed


def within(model: Denoiser, settings: Settings, budget: int) -> tuple[Settings, list[str]]:
    """The settings that a fit of at most ``budget`` evaluations can have, and in words what it leaves out.

    Raises UserError where nothing can be left out any more.
    """

    def cost(tried: Settings) -> int:
        return task_of(model, tried).cost() * model.spec.branches

    tried, left_out, waiting = settings, dict[str, str](), savings(model, settings)
    while (spent := cost(tried)) > budget:
        saving = next(waiting, None)
        if saving is None:
            least = f", with {', '.join(left_out.values())}," * bool(left_out)
            raise UserError(f"a budget of {budget:,} evaluations is too small: the smallest fit{least} takes {spent:,}")
        tried = replace(tried, **saving.changes)
        left_out[saving.kind] = saving.words
    return tried, [*left_out.values()]


def savings(model: Denoiser, settings: Settings) -> Iterator[Saving]:
    """What can be left out, one thing after the other."""
    task = task_of(model, settings)

    def noises(*counts: int) -> Iterator[Saving]:
        for count in counts:
            if settings.fit_batch > count:
                changes = {"fit_batch": count, "heldout": min(settings.heldout, max(8, count // 2))}
                yield Saving("noises", f"{count} of {settings.fit_batch} noises", changes)

    yield from noises(128, 64)
    least = task_of(model, replace(settings, refine=0)).iterations
    for iterations in (5, 2, 1, 0):
        if settings.refine > iterations >= least:
            words = f"{iterations} of {settings.refine} refinement iterations"
            yield Saving("refinement", words, {"refine": iterations})
    yield from noises(32, 16)
    schedule, afs = model.spec.schedule if task.schedule == CHOSEN else task.schedule, task.afs
    if settings.solver == "auto":  # one solver on chosen levels would need a search for them, which takes more
        afs = task_of(model, replace(settings, schedule=schedule, refine=0)).afs
        kept = {"schedule": schedule, "fit_target": task.target, "afs": afs, "refine": 0}
        words = f"{SCOUT.name} on {schedule} levels as the one solver" + ", not refined" * (task.iterations > 0)
        yield Saving("refinement", words, {"solver": SCOUT.name, **kept})
    elif task.schedule == CHOSEN:
        yield Saving("schedule", f"{schedule} as the schedule", {"schedule": schedule})
    if afs and settings.afs is None:
        yield Saving("afs", "no analytical first step", {"afs": False})
