"""This project's own fit, as ``python -m calibration`` makes it by itself: with an empty cache, and so at full cost."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from edge_sampler.calibration.calibrate import fitted
from edge_sampler.calibration.evaluate.distributed import processes
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.refinement import TURN
from edge_sampler.calibration.study.rivals.contest import Contest
from edge_sampler.calibration.task import task_of
from edge_sampler.calibration.views import PIXELS, viewer
from edge_sampler.runtime.plan import Plan, nested
from edge_sampler.runtime.scratch import scratch


def auto(contest: Contest) -> Plan:
    return made(contest, 0)


def refined(contest: Contest) -> Plan:
    return made(contest, contest.settings.refine)


def made(contest: Contest, iterations: int) -> Plan:
    """The plan of ``--solver auto --refine iterations``; without iterations, of the noises that it takes by itself."""
    model = contest.noises.network.model
    settings = replace(contest.settings, solver="auto", fit_target=None, refine=iterations)
    if not iterations:
        settings = replace(settings, fit_batch=None, heldout=None)  # type: ignore[arg-type]

    def fit() -> dict[str, np.ndarray]:
        meter = contest.noises.network.meter
        with scratch() as folder:
            plan = fitted(model, settings, lambda what, count: nullcontext(meter.progress), Cache(folder))
        assert plan.report
        meter.evaluations += plan.report.evaluations // processes()
        rows = {str(k): np.array(row) for k, row in enumerate(plan.table)}
        return {"name": np.array(plan.solver), "sigmas": np.array(plan.sigmas), "mean": np.array(plan.mean), **rows}

    task = task_of(model, settings)
    told: dict[str, Any] = {"what": f"auto, refined by {task.iterations}", "settings": vars(settings)}
    if model.spec.inputs.conditions:
        told |= {"afs": task.afs} | ({"means": task.means} if task.means else {})
    if iterations and settings.refine_on != PIXELS.key:  # a name tells no function
        told["view"] = viewer(settings.refine_on, model).key
    kept = contest.recall(told | {"turn": TURN, "search": vars(task.effort)}, task.cost(), fit)
    rows = tuple(tuple(kept[str(k)].tolist()) for k in range(contest.nfe + 1))
    mean = nested(kept["mean"]) if kept["mean"].size else ()
    return Plan(str(kept["name"]), tuple(kept["sigmas"].tolist()), rows, mean=mean)
