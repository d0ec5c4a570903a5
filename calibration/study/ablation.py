"""What each part of a fitted sampler is worth, and what a fit is worth elsewhere: one change at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_sampler.calibration.calibrate import fitted
from edge_sampler.calibration.candidates import grid_of, scheme_of
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.refinement import ITERATIONS
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.settings import CHOSEN, Settings
from edge_sampler.calibration.solvers import ALL_SOLVERS, find
from edge_sampler.calibration.study.measure import Judge, judging
from edge_sampler.calibration.trace import trace
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.plan import Plan

SEEDS = 5  # of fits whose spread is asked for
BATCHES = (8, 16, 32, 64, 128)  # those below the batch of the other trials are tried beside it
HISTORIES = (1, 2, 3, 4)
CLASSES = 3  # the first ones of a model, that try each other's fits


@dataclass(frozen=True)
class Trial:
    """One line of a table: the settings that it changes, and the number of seeds that it is fitted with."""

    label: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1


@dataclass(frozen=True)
class Answer:
    """A table of RMS errors against the converged images: by a line's label and NFE, one for each seed."""

    question: str
    lines: Sequence[tuple[str, Sequence[Sequence[float]]]]
    columns: Sequence[str]


def questions(history: Sequence[int], batch: int, own: str) -> dict[str, list[Trial]]:
    """By question, the trials; what they do not change is iia-ipndm with r = 1, the global target and
    the model's ``own`` schedule.

    ``batch``: the noises that trials are fitted on; also the most that are asked about.
    """
    batches = [*(noises for noises in BATCHES if noises < batch), batch]
    return {
        "What γ may weigh": [
            Trial("nothing: fixed step sizes (ddim)", {"solver": "ddim"}),
            Trial("the current gradient (iia-ddim-guided)", {"solver": "iia-ddim-guided", "history": 0}),
            *(Trial(f"r = {r} past gradients (iia-ddim)", {"solver": "iia-ddim", "history": r}) for r in history),
            Trial("Heun (heun)", {"solver": "heun"}),
            Trial("Heun, its own increments (biia-edm)", {"solver": "biia-edm", "history": 0}),
            *(Trial(f"Heun, r = {r} (iia-edm)", {"solver": "iia-edm", "history": r}) for r in (0, *history)),
        ],
        "Ridge and its centre": [
            Trial(f"{centre}: ridge {ridge:g}", {"solver": f"iia-{centre}", "history": max(history), "ridge": ridge})
            for centre in ("ddim", "ipndm")
            for ridge in (0.0, 1e-6, 1e-4, 1e-2, 1.0)
        ],
        "Target, and its fine steps M": [
            *(Trial(f"local, M = {m}", {"fit_target": "local", "fine_steps": m}) for m in (2, 5, 10, 20)),
            Trial("global"),
        ],
        "Noise levels": [
            Trial(f"{schedule}, {solver}", {"schedule": schedule, "solver": solver})
            for schedule in (*SCHEDULES, CHOSEN)
            for solver in ("ipndm", "iia-ipndm")
        ],
        "Other solvers (chosen levels)": [
            Trial(f"{solver.name}", {"schedule": CHOSEN, "solver": solver.name})
            for solver in ALL_SOLVERS
            if not solver.clip
        ],
        "First step": [
            Trial(f"{schedule}, {'analytical' if afs else 'by the network'}", {"schedule": schedule, "afs": afs})
            for schedule in (own, CHOSEN)
            for afs in (False, True)
        ],
        "Refinement": [
            Trial(f"{schedule}, {how}", {"schedule": schedule, "refine": iterations})
            for schedule in (own, CHOSEN)
            for how, iterations in (("not refined", 0), ("refined", ITERATIONS))
        ],
        f"Noises to fit on, over {SEEDS} seeds": [
            Trial(f"{schedule}, r = {r}, {noises}", {"schedule": schedule, "history": r, "fit_batch": noises}, SEEDS)
            for schedule in (own, CHOSEN)
            for r in (min(history), max(history))
            for noises in batches
        ],
    }


def ablate(
    model: Denoiser,
    nfes: Sequence[int],
    settings: Settings,
    judged: int,
    cache: Cache,
    progress: ProgressBars = silent,
) -> list[Answer]:
    """Answers every one of ``questions`` at each of ``nfes``, by ``judged`` noises; what it computes is kept.

    ``settings`` are those that a trial departs from.
    """
    judge = judging(model, judged, cache, progress)
    history = [r for r in HISTORIES if r < min(nfes)]

    def errors(trial: Trial, nfe: int) -> list[float]:
        every = [replace(settings, nfe=nfe, seed=seed, **trial.changes) for seed in range(trial.seeds)]
        return [error(judge, fitted(model, one, progress, cache)) for one in every]

    return [
        Answer(question, [(trial.label, [errors(trial, nfe) for nfe in nfes]) for trial in trials], columns(nfes))
        for question, trials in questions(history, settings.fit_batch, model.spec.schedule).items()
    ]


def between_models(
    models: Sequence[Denoiser], settings: Settings, judged: int, cache: Cache, progress: ProgressBars = silent
) -> list[Answer]:
    """The plans of each model, used on each, where there are several; and likewise those of a model's first classes."""
    answers = []
    by_class = [[conditioned(model, k) for k in range(min(CLASSES, model.spec.classes))] for model in models]
    for group in [models, *by_class]:
        if len(group) < 2:
            continue
        judges = [judging(model, judged, cache, progress) for model in group]
        own = group[0].spec.schedule
        for schedule in (own, CHOSEN):
            plans = {f"not fitted: ipndm, {own} grid": fixed(group[0], own, settings)}
            for model in group:
                plan = fitted(model, replace(settings, schedule=schedule), progress, cache)
                plans[f"fitted on {model.spec.title}"] = plan
            lines = [(name, [[error(judge, plan)] for judge in judges]) for name, plan in plans.items()]
            question = f"Fitted on one, used on another: {schedule} grid, NFE {settings.nfe}"
            answers.append(Answer(question, lines, [f"on {model.spec.title}" for model in group]))
    return answers


def between_grids(
    model: Denoiser, settings: Settings, judged: int, cache: Cache, progress: ProgressBars = silent
) -> Answer:
    """The γ of each grid, used on each."""
    judge = judging(model, judged, cache, progress)
    lines = [("not fitted: ipndm", [[error(judge, fixed(model, schedule, settings))] for schedule in SCHEDULES])]
    for origin in SCHEDULES:
        report = fitted(model, replace(settings, schedule=origin), progress, cache).report
        gammas = [step.gamma for step in report.steps] if report else []
        schemes = [scheme_of(find(settings.solver), grid_of(model, schedule), settings) for schedule in SCHEDULES]
        lines.append((f"γ of {origin}", [[error(judge, trace(scheme, gammas))] for scheme in schemes]))
    return Answer(f"γ of one grid on another, NFE {settings.nfe}", lines, [f"on {schedule}" for schedule in SCHEDULES])


def fixed(model: Denoiser, schedule: str, settings: Settings) -> Plan:
    return trace(scheme_of(find("ipndm"), grid_of(model, schedule), settings))


def error(judge: Judge, plan: Plan) -> float:
    return judge.row(replace(plan, report=None), "", ())[0].rmse


def columns(nfes: Sequence[int]) -> list[str]:
    return [f"NFE {nfe}" for nfe in nfes]


def markdown(answer: Answer) -> str:
    """The table; of several seeds the mean and the standard deviation."""
    lines = [f"## {answer.question}", "", "| | " + " | ".join(answer.columns) + " |"]
    lines.append("| --- " * (len(answer.columns) + 1) + "|")
    for label, every in answer.lines:
        cells = [f"{np.mean(e):.4f}" + (f" ± {np.std(e, ddof=1):.4f}" if len(e) > 1 else "") for e in every]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
