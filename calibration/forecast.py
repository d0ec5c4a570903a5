"""What a fit will take, said before it: evaluations, time and memory."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edge_sampler.calibration.calibrate import refit_cost
from edge_sampler.calibration.evaluate.distributed import BLOCK, processes, rank
from edge_sampler.calibration.evaluate.network import CHUNK_BYTES, Live, Network, most_at_once
from edge_sampler.calibration.evaluate.noise_sets import to_judge
from edge_sampler.calibration.evaluate.reference import IN_MEMORY
from edge_sampler.calibration.pilot import most_levels
from edge_sampler.calibration.refinement import noise_bytes, parameters, refinement_bytes
from edge_sampler.calibration.settings import CHOSEN, Settings
from edge_sampler.calibration.task import derivative_bytes, task_of
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.mapped import size_of
from edge_sampler.runtime.backends.base import resident_memory
from edge_sampler.runtime.plan import Plan

TOLD = 120.0  # seconds; of a fit that takes less nobody needs to know
TIMED = 0.3  # seconds; twice as many samples are timed as long as they take less
TOO_LONG = 3 * 3600.0  # seconds, on a CPU


@dataclass(frozen=True)
class Forecast:
    """What a fit takes at the most, and without results of earlier ones.

    Args:
        evaluations: of one sample; with guidance each counts as its branches.
        seconds: by an evaluation that was timed on this machine.
        memory: bytes, with the weights and, on a CPU, what this process has already.
        device: PyTorch's name of its kind.
        what: the fit, as its line calls it.
    """

    evaluations: int
    seconds: float
    memory: int
    device: str
    what: str = "fit"

    def __str__(self) -> str:
        minutes = math.ceil(self.seconds / 60)
        took = f"{minutes} minute{'s' * (minutes != 1)}" if minutes < 100 else f"{minutes / 60:.1f} hours"
        slow = self.device == "cpu" and self.seconds > TOO_LONG
        advice = "; take a GPU, with --device cuda, or fewer noises" if slow else ""
        return (
            f"the {self.what} takes at most {self.evaluations:,} evaluations of one sample: up to {took} and "
            f"{max(0.1, self.memory / 1e9):.1f} GB of memory on this {self.device}{advice}"
        )


def announce(model: Denoiser, settings: Settings, towards: Denoiser | None = None, longer: float = TOLD) -> None:
    """Says it in one line on standard error, where the fit takes longer than so many seconds."""
    if rank() == 0 and (told := forecast(model, settings, towards)) and told.seconds > longer:
        print(told, file=sys.stderr)


def forecast(model: Denoiser, settings: Settings, towards: Denoiser | None = None) -> Forecast | None:
    """None for a fixed solver, which asks the network nothing. Costs two evaluations of one sample, or a second.

    With a model that the fit aims at, each evaluation counts as one of the slower of the two.
    """
    task = task_of(model, settings)
    if not task.evaluates:
        return None
    seconds, sample_bytes = slower_evaluation(model, towards)
    evaluations, steps = task.cost(), max(task.numbers)
    noises = -(-(settings.fit_batch + settings.heldout) // processes())
    levels = most_levels(task.numbers) if task.schedule == CHOSEN else sum(task.numbers)
    number = math.prod(model.spec.shape) * noises  # of values in a state of all samples
    solved = min(4 * levels * number, IN_MEMORY)
    block = 8 * 2 * levels * math.prod(model.spec.shape) * min(BLOCK, noises)  # of a fine solve, and of its end
    fitted = 8 * number * (3 * steps + 6)  # states, answers and aims of every step, and what γ is solved of
    called = min(CHUNK_BYTES, sample_bytes * min(most_at_once(model.device, torch.get_num_threads()), noises))
    derived = derivative_bytes(model.spec, settings.nfe, task.afs, task.columns)
    refined = refinement_bytes(derived) if task.iterations else 0
    memory = held(*filter(None, (model, towards))) + called + solved + max(block, fitted, refined)
    return Forecast(evaluations * model.spec.branches, seconds * evaluations / processes(), memory, model.device.type)


def held(*models: Denoiser) -> int:
    """Bytes of memory that a fit of these starts with: weights, and on a CPU all that this process has."""
    weights = sum(map(size_of, models))
    return max(weights, resident_memory()) if models[0].device.type == "cpu" else weights


def one_evaluation(
    model: Denoiser, evaluations: Sequence[Denoiser] = (), drawn_by: Denoiser | None = None
) -> tuple[float, int]:
    """Seconds of one sample, and the bytes that it takes in memory; of the first of ``evaluations``, if there are some.

    More are timed together where one is quick. The least counts: what takes longer was disturbed. ``drawn_by`` is whose
    examples the conditions are, if not the model's.
    """

    def network(count: int) -> tuple[Network, Tensor]:
        noises = to_judge(model, count * processes(), drawn_by=drawn_by).over(evaluations)
        return noises.network.at(0), sigma * noises.noise

    sigma = model.spec.sigma_max
    with Live():
        torch.zeros(1)  # PyTorch imports much when such a mode first sees something
    few, x = network(2)
    sample_bytes = few.sample_bytes(x, sigma)
    seconds, count = math.inf, 1
    while count <= BLOCK:
        asked, x = network(count)
        asked.meter.sample_bytes = sample_bytes
        started = time.perf_counter()
        asked(x, sigma)
        took = time.perf_counter() - started
        seconds, count = min(seconds, took / count), 2 * count
        if took > TIMED:
            break
    return seconds, sample_bytes


def slower_evaluation(model: Denoiser, towards: Denoiser | None = None) -> tuple[float, int]:
    """Seconds of one sample, and its bytes, by whichever of the two takes more."""
    both = [model] if towards is None else [model, towards]
    seconds, sample_bytes = zip(*(one_evaluation(one, drawn_by=model) for one in both), strict=True)
    return max(seconds), max(sample_bytes)


def announce_refit(model: Denoiser, evaluations: Sequence[Denoiser], plan: Plan, settings: Settings) -> None:
    """Says in one line on standard error what ``refit`` takes at the most, however long it is."""
    if rank() == 0:
        print(forecast_refit(model, evaluations, plan, settings), file=sys.stderr)


def forecast_refit(model: Denoiser, evaluations: Sequence[Denoiser], plan: Plan, settings: Settings) -> Forecast:
    """What ``refit`` takes at the most. Costs two seconds, or four evaluations of one sample."""
    (seconds, sample_bytes), (seconds_of_others, _) = one_evaluation(model), one_evaluation(model, evaluations)
    exact, others = refit_cost(plan, settings)
    numbers, values = len(parameters(plan)), math.prod(model.spec.shape)
    called = min(CHUNK_BYTES, sample_bytes * min(most_at_once(model.device, torch.get_num_threads()), BLOCK * numbers))
    tangents = refinement_bytes(noise_bytes(numbers, plan.nfe, values, values))
    weights = held(model, *evaluations)
    took = (seconds * exact + seconds_of_others * others) / processes()
    count = (exact + others) * model.spec.branches
    return Forecast(count, took, weights + called + tangents, model.device.type, "refit")
