"""What rivals share: noises to fit on, the images that these should become, and a ledger of a fit's cost."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from edge_sampler.calibration.afs import mean_image
from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.evaluate.noise_sets import SEEDS, Noises
from edge_sampler.calibration.evaluate.reference import cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

FIRST = 16  # held-out noises that judge many samplers first
FINALISTS = 4  # samplers that all held-out noises judge, at the most


@dataclass
class Ledger:
    """Evaluations of one sample, those of all processes, and seconds."""

    evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Contest:
    """A task that rivals share: a sampler of ``settings.nfe`` evaluations, fitted on these noises, some held out.

    ``settings`` also says how many noises these are. What a fit computes goes through ``recall``, which keeps results
    with what they cost; so ``ledger`` is right even where a killed run is taken up.
    """

    noises: Noises
    settings: Settings
    cache: Cache = NO_CACHE
    progress: ProgressBars = silent
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def nfe(self) -> int:
        return self.settings.nfe

    def recall(
        self, key: Mapping[str, Any], expected: int, compute: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays of ``key``, computed only when they are not kept; what that costs, or did, goes on the ledger.

        ``expected`` evaluations of one sample, as the progress bar has it; ``key["what"]`` is its title.
        """
        meter = self.noises.network.meter

        def measured() -> dict[str, np.ndarray]:
            started = time.perf_counter()
            arrays = dict(compute())
            return {**arrays, "seconds": np.array(time.perf_counter() - started)}

        told = {
            "rival": key,
            "noises": self.noises.key,
            "fitting": self.noises.fitting,
            "steps": self.settings.reference_steps,
        }
        before = meter.evaluations
        with self.progress(str(key["what"]), expected) as meter.progress:
            arrays = self.cache.recall_together(told, measured, meter)
        self.ledger.evaluations += int(total(np.array([meter.evaluations - before], float))[0])
        self.ledger.seconds += float(arrays.pop("seconds"))
        return arrays

    @cached_property
    def goal(self) -> Tensor:
        """The converged images [n, …] of all noises: what the settings' ``reference_steps`` make."""
        levels, steps = [self.noises.network.model.spec.sigma_max], cost(1, self.settings.reference_steps)

        def solve() -> dict[str, np.ndarray]:
            return {"images": solution(self.noises, levels, steps, NO_CACHE)[0.0].float().cpu().numpy()}

        made = self.recall({"what": "converged images"}, steps * len(self.noises), solve)
        return self.noises.noise.new_tensor(made["images"])

    @cached_property
    def mean(self) -> Tensor:
        """The constant [*shape] of an analytical first step."""

        def average() -> dict[str, np.ndarray]:
            return {"mean": mean_image(self.noises, NO_CACHE).cpu().numpy()}

        return self.noises.noise.new_tensor(self.recall({"what": "mean image"}, self.noises.fitting, average)["mean"])

    @property
    def heldout(self) -> tuple[Noises, Tensor]:
        """The noises that are held out of the fit, and their converged images."""
        return self.noises.heldout, self.goal[self.noises.fitting :]

    def best(self, plans: Sequence[Plan]) -> Plan:
        """The one whose images of held-out noises have the least RMS error: the measure that all are judged by.

        Many are first judged by few noises: of four one goes on, to be judged by twice as many.
        """
        count, left = FIRST, list(dict.fromkeys(plans))
        while len(left) > FINALISTS:
            errors = self.errors(left, count)
            left = [left[place] for place in np.argsort(errors, kind="stable")[: -(-len(left) // 4)]]
            count *= 2
        return left[int(np.argmin(self.errors(left, len(self.noises))))]

    def errors(self, plans: Sequence[Plan], count: int) -> list[float]:
        """The RMS error of each plan's images of the first ``count`` held-out noises, or of as many as there are."""
        noises, goal = self.heldout
        noises = noises.part(slice(sum(seed % (SEEDS // 2) < count for seed in noises.seeds)))

        def measure() -> dict[str, np.ndarray]:
            return {"errors": np.array([rms_error(noises, goal[: len(noises)], plan) for plan in plans])}

        told = {"what": f"choice among {len(plans)}", "plans": [plan.sha256 for plan in plans], "count": count}
        spent = sum(plan.nfe for plan in plans) * len(noises)
        errors: list[float] = self.recall(told, spent, measure)["errors"].tolist()
        return errors


def rms_error(noises: Noises, goal: Tensor, plan: Plan) -> float:
    """Of the plan's images against the ``goal`` [n, …], over all processes; infinite where a state runs away."""
    try:
        wrong = noises.sample(plan) - goal
        sums = [wrong.square().sum().item(), wrong.numel(), 0]
    except UserError:  # the network's answer is not finite
        sums = [0, 0, 1]
    squares, count, failed = total(np.array(sums, float))
    return float("inf") if failed else float(np.sqrt(squares / count))
