"""The best fit that a budget of evaluations, or of time, allows: what it leaves out goes in the order of what it costs.

The order is what the ablation found (docs/study.md): γ of 64 noises is nearly that of 256; fewer iterations of
refinement come next, then fewer noises still, one solver in place of four, and last a schedule in place of chosen
levels.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sampler.calibration.calibrate import task_of
from edge_sampler.calibration.evaluate.distributed import processes, rank, total
from edge_sampler.calibration.forecast import announce, forecast, one_evaluation
from edge_sampler.calibration.settings import CHOSEN, Settings
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
SOLVER = "iia-ddim"  # in place of "auto"


def afford(model: Denoiser, settings: Settings, budget: str | None) -> Settings:
    """What a budget allows of ``settings``; that, and what it will take, is said on standard error.

    Without a budget it is all of them. Raises what ``evaluations_of`` and ``within`` raise.
    """
    if budget is None:
        announce(model, settings)
        return settings
    allowed, left_out = within(model, settings, evaluations_of(budget, model))
    if rank() == 0:
        print(f"budget of {budget}: {', '.join(left_out) or 'nothing is left out'}", file=sys.stderr)
        print(forecast(model, allowed) or "a fixed solver at fixed levels needs no fit", file=sys.stderr)
    return allowed


def evaluations_of(budget: str, model: Denoiser) -> int:
    """``20000`` (evaluations of one sample), or ``90s``, ``10m``, ``2h``: as many as this machine makes in that time.

    Raises UserError for anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", budget)
    if not found or float(found[1]) <= 0 or (not found[2] and not found[1].isdigit()):
        raise UserError(f"--budget {budget}: expected evaluations, such as 20000, or a time, such as 90s, 10m or 2h")
    if not found[2]:
        return int(found[1])
    seconds = total(np.array([one_evaluation(model)[0]]))[0] / processes()  # the same for all of them
    return int(float(found[1]) * UNITS[found[2]] / seconds * processes()) * model.spec.branches


def within(model: Denoiser, settings: Settings, budget: int) -> tuple[Settings, list[str]]:
    """What of ``settings`` a fit of so many evaluations, at the most, can do, and in words what it leaves out.

    Raises UserError where nothing can be left out any more.
    """
    tried, left_out = settings, dict[str, str]()
    for what, changes in [("", {}), *savings(model, settings)]:
        tried = replace(tried, **changes)
        if what:
            left_out[what.split()[-1]] = what
        spent = task_of(model, tried).cost() * model.spec.branches
        if spent <= budget:
            return tried, [*left_out.values()]
    raise UserError(
        f"a budget of {budget:,} evaluations is too small: the least that fits anything, "
        f"{', '.join(left_out.values())}, takes {spent:,}"
    )


def savings(model: Denoiser, settings: Settings) -> Iterator[tuple[str, dict[str, Any]]]:
    """What can be left out, one thing after the other; the last word of each says of what it is."""

    def noises(count: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if settings.batch > count:
            held = min(settings.heldout, max(8, count // 2))
            yield f"{count} of {settings.batch} noises", {"batch": count, "heldout": held}

    for count in (128, 64):
        yield from noises(count)
    for iterations in (5, 2, 1, 0):
        if settings.refine > iterations:
            yield f"{iterations} of {settings.refine} refinement iterations", {"refine": iterations}
    for count in (32, 16):
        yield from noises(count)
    task = task_of(model, settings)
    if settings.solver == "auto":
        kept = {"schedule": task.schedule, "target": task.target, "afs": task.afs}
        yield f"{SOLVER} as the one solver", {"solver": SOLVER, **kept}
    if task.schedule == CHOSEN:
        yield f"{model.spec.schedule} as the schedule", {"schedule": model.spec.schedule}
