"""What rivals share: noises to fit on, the images these should become, and a ledger of what a fit has cost."""

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
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import rms
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.plan import Plan, sample

FIRST = 16  # held-out noises that judge many samplers first
FINALISTS = 4  # samplers that all held-out noises judge, at the most


@dataclass
class Ledger:
    """Evaluations of one sample, those of all processes, and seconds."""

    evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Contest:
    """A task that rivals share: a sampler of ``nfe`` evaluations, fitted on these noises, some of which are held out.

    What a fit computes goes through ``recall``, which keeps results with what they cost; so ``ledger`` is right even
    where a killed run is taken up.
    """

    noises: Noises
    nfe: int
    cache: Cache = NO_CACHE
    progress: ProgressBars = silent
    ledger: Ledger = field(default_factory=Ledger)

    def recall(self, key: Mapping[str, Any], compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """The arrays of ``key``, computed only when they are not kept; what that costs, or did, goes on the ledger."""
        meter = self.noises.network.meter

        def measured() -> dict[str, np.ndarray]:
            started, before = time.perf_counter(), meter.evaluations
            arrays = dict(compute())
            return {**arrays, "spent": np.array([meter.evaluations - before, time.perf_counter() - started])}

        told = {"rival": key, "noises": self.noises.key, "fitting": self.noises.fitting}
        with self.progress(str(key["what"]), 1) as advance:
            arrays = self.cache.recall_together(told, measured)
            advance(1)
        evaluations, seconds = arrays.pop("spent").tolist()
        self.ledger.evaluations += int(total(np.array([evaluations], float))[0])
        self.ledger.seconds += seconds
        return arrays

    @cached_property
    def goal(self) -> Tensor:
        """The converged images [n, …] of all noises: what ``REFERENCE_STEPS`` of the reference make."""
        levels, noises = [self.noises.network.model.spec.sigma_max], self.noises

        def solve() -> dict[str, np.ndarray]:
            return {"images": solution(noises, levels, REFERENCE_STEPS, NO_CACHE)[0.0].float().cpu().numpy()}

        images = self.recall({"what": "converged images", "steps": cost(1, REFERENCE_STEPS)}, solve)["images"]
        return noises.noise.new_tensor(images)

    @cached_property
    def mean(self) -> Tensor:
        """The constant [*shape] of an analytical first step."""
        made = self.recall({"what": "mean image"}, lambda: {"mean": mean_image(self.noises, NO_CACHE).cpu().numpy()})
        return self.noises.noise.new_tensor(made["mean"])

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
            every = [sample(noises.network, noises.noise, plan) - goal[: len(noises)] for plan in plans]
            return {"errors": np.array([rms(wrong) for wrong in every])}

        told = {"what": f"choice among {len(plans)}", "plans": [plan.sha256 for plan in plans], "count": count}
        errors: list[float] = self.recall(told, measure)["errors"].tolist()
        return errors
