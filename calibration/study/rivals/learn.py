"""Adam over the numbers that a sampler is made of (Kingma & Ba, arXiv 1412.6980), through the whole sampling loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import SEEDS
from edge_sampler.calibration.study.rivals.contest import Contest, rms_error
from edge_sampler.calibration.study.rivals.gradient import BACKWARD, Loss, by_parameters, descent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

BATCH = 32  # noises of an iteration
JUDGED_EVERY = 25  # iterations
TRIED = 2  # such pieces of each learning rate; the best of the rates goes on
MOMENTS = (0.9, 0.99)

State = dict[str, np.ndarray]  # parameters now and best, their held-out errors, Adam's moments, the noises' shift


@dataclass(frozen=True)
class Lesson:
    """What to learn.

    Args:
        name: for people, and of what is kept.
        plan_of: the sampler of parameters [p]; raises UserError where there is none.
        start: the parameters to start from.
        loss: of images' mean squared errors [n]; a mean over images.
        rates: learning rates to try.
        iterations: at the rate that goes on, those it was tried with included; it falls to 0 as a cosine does.
        radius: how far, by its length, each fitting noise may move to meet the sampler; 0: not at all.
        judged_every: iterations after which the held-out noises judge, and where a killed run goes on.
    """

    name: str
    plan_of: Callable[[np.ndarray], Plan]
    start: np.ndarray
    loss: Loss
    rates: tuple[float, ...]
    iterations: int
    radius: float = 0.0
    judged_every: int = JUDGED_EVERY


def learn(contest: Contest, lesson: Lesson) -> Plan:
    """The sampler that errs least on the held-out noises of all that were met, the start among them."""
    pieces = lesson.iterations // lesson.judged_every
    start = begun(contest, lesson)
    tried = dict.fromkeys(lesson.rates, start)
    for piece in range(min(TRIED, pieces)):
        tried = {rate: advanced(contest, lesson, state, rate, piece) for rate, state in tried.items()}
    best = min(tried, key=lambda rate: float(tried[rate]["error"]))
    state = tried[best]
    for piece in range(TRIED, pieces):
        state = advanced(contest, lesson, state, best, piece)
    states = [state, *tried.values()]
    return lesson.plan_of(min(states, key=lambda state: float(state["least"]))["best"])


def begun(contest: Contest, lesson: Lesson) -> State:
    def judge() -> State:
        return {"error": np.array(error_of(contest, lesson, lesson.start))}

    told = {"what": f"{lesson.name}, start", "sampler": lesson.plan_of(lesson.start).sha256}
    error = contest.recall(told, contest.nfe * len(contest.heldout[0]), judge)["error"]
    nothing = np.zeros_like(lesson.start)
    shift = np.zeros(contest.noises.noise[: contest.noises.fitting].shape if lesson.radius else 0)
    moments = {"first": nothing, "second": nothing, "shift": shift}
    return {"now": lesson.start, "best": lesson.start, "error": error, "least": error, **moments}


def sampler_of(lesson: Lesson, parameters: np.ndarray) -> Plan | None:
    """None where there is no such sampler: parameters ran away."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            return lesson.plan_of(parameters)
    except UserError:
        return None


def error_of(contest: Contest, lesson: Lesson, parameters: np.ndarray) -> float:
    """The RMS error on the held-out noises; infinite where there is no such sampler, or it runs away."""
    plan = sampler_of(lesson, parameters)
    return math.inf if plan is None else rms_error(*contest.heldout, plan)


def advanced(contest: Contest, lesson: Lesson, state: State, rate: float, piece: int) -> State:
    """``state`` after a piece of iterations more."""
    done, size = piece * lesson.judged_every, lesson.judged_every
    told = {"what": f"{lesson.name}, rate {rate:g}, to {done + size}", "of": lesson.iterations}
    told |= {"sampler": lesson.plan_of(lesson.start).sha256, "radius": lesson.radius}
    told |= {"from": [state["now"].tolist(), state["second"].tolist()]}

    def advance() -> State:
        new = {name: values.copy() for name, values in state.items()}
        for iteration in range(done, done + size):
            falling = rate * (1 + math.cos(math.pi * iteration / lesson.iterations)) / 2
            plan = sampler_of(lesson, new["now"])
            if plan is None:
                break
            gradient = gradient_at(contest, lesson, plan, new, iteration)
            for moment, power, decay in zip(("first", "second"), (1, 2), MOMENTS, strict=True):
                new[moment] = decay * new[moment] + (1 - decay) * gradient**power
            first, second = (
                new[moment] / (1 - decay ** (iteration + 1))
                for moment, decay in zip(("first", "second"), MOMENTS, strict=True)
            )
            new["now"] = new["now"] - falling * first / (np.sqrt(second) + 1e-12)
        new["error"] = np.array(error_of(contest, lesson, new["now"]))
        if new["error"] < new["least"]:
            new["best"], new["least"] = new["now"], new["error"]
        return new

    judged = contest.nfe * len(contest.heldout[0])
    return contest.recall(told, size * BATCH * (1 + BACKWARD) * contest.nfe + judged, advance)


def gradient_at(contest: Contest, lesson: Lesson, plan: Plan, state: State, iteration: int) -> np.ndarray:
    """The loss's derivative by the parameters that make ``plan``, a mean over the noises whose turn it is.

    It moves these where it may. Each process has its own of them.
    """
    noises = contest.noises
    count = int(total(np.array([noises.fitting], float))[0])
    turn = (iteration * BATCH) % count
    places = [
        place for place, seed in enumerate(noises.seeds[: noises.fitting]) if (seed % SEEDS - turn) % count < BATCH
    ]
    summed = np.zeros(len(state["now"]) + 1)
    if places:
        some = noises.some(places)
        shift = torch.from_numpy(state["shift"][places]).to(some.noise) if lesson.radius else 0.0
        by_table, by_noise = descent(some.network, some.noise + shift, contest.goal[places], plan, lesson.loss)
        summed = len(places) * np.append(by_table @ by_parameters(lesson.plan_of, state["now"]), 1.0)
        if lesson.radius:
            length = by_noise.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, *[1] * (by_noise.dim() - 1))
            moved = shift - lesson.radius / 2 * by_noise / length
            size = moved.flatten(1).norm(dim=1).view_as(length)
            state["shift"][places] = (moved * (lesson.radius / size).clamp_max(1.0)).cpu().numpy()
    summed = total(summed)
    return np.nan_to_num(summed[:-1] / summed[-1])
