"""How good a plan is: its images of noises that no fit has seen, against the converged ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from edge_sampler.calibration.evaluate.distributed import gathered, total
from edge_sampler.calibration.evaluate.noise_sets import CHECK_STREAM, Noises, digest, to_judge
from edge_sampler.calibration.evaluate.reference import REFERENCE_STEPS, cost, solution
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.fit import image_errors, rms
from edge_sampler.calibration.study import frechet
from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks import classifier
from edge_sampler.models.progress import ProgressBars
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FittedStep
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.text import loaded

RESAMPLES = 1000  # of the bootstrap
TRIMMED = 0.01  # of the images, the worst, are left out of one measure
SHOWN = 8  # images of each sampler that are kept for the picture
CONVERGED = 0.003  # RMS change of an image of the reference when its steps double, or less
MOST_STEPS = 2048  # that it may take


@dataclass(frozen=True)
class Row:
    """One sampler at one NFE: RMSE of its images against the converged ones, a 95 % bootstrap interval, FD-fashion.

    ``trimmed`` is the RMSE without that part ``TRIMMED`` of the images which err most, ``median`` the median of the
    images' own RMSE.

    ``kind`` is one of ``KINDS``: fixed, or γ fitted by least squares to the global target, on EDM's grid or a chosen
    one, there with an analytical first step too; or refined; or a rival's (study/rivals/), or given. ``steps`` are the
    RMS errors after each step on the fit's held-out noises, before and after γ; ``fd`` is None without features.
    ``judged_fd``, ``precision`` and ``recall`` are by the second classifier, on which nothing is ever fitted. Of
    rivals, ``of`` is the solver that they chose or started from, and ``evaluations`` of one sample and ``seconds`` are
    what their fits alone cost.
    """

    solver: str
    kind: str
    nfe: int
    rmse: float
    low: float
    high: float
    trimmed: float
    median: float
    fd: float | None
    plan: Plan
    steps: tuple[tuple[float, float], ...] = ()
    of: str = ""
    evaluations: int | None = None
    seconds: float | None = None
    judged_fd: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Unseen:
    """The classifier on which nothing is fitted, and what it makes of real images, of all and of some [n, 64]."""

    network: classifier.Mixer
    real: classifier.Statistics
    some: torch.Tensor

    def figures(self, features: np.ndarray) -> tuple[float, float, float]:
        """FD against the training images, precision and recall against ``some`` test images."""
        made = torch.from_numpy(features).float()
        fd = frechet.distance(classifier.statistics(made), self.real)
        return fd, *frechet.precision_and_recall(made, self.some)


def interval(errors: np.ndarray) -> tuple[float, float]:
    """The 95 % bootstrap interval of √(mean of ``errors``), which are images' squared ones, [n]."""
    draws = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    low, high = np.sqrt(np.percentile(errors[draws].mean(1), [2.5, 97.5]))
    return float(low), float(high)


def averages(errors: np.ndarray) -> tuple[float, float, float]:
    """√ of three averages of ``errors``, which are images' squared ones, [n]: of all, but for the worst, the median."""
    most = np.sort(errors)[: len(errors) - int(TRIMMED * len(errors))]
    of_all, of_most, median = np.sqrt([errors.mean(), most.mean(), np.median(errors)]).tolist()
    return of_all, of_most, median


@dataclass(frozen=True)
class Judge:
    """Noises, the images they should become, and the classifiers that see 28×28 ones.

    ``moved`` [n] is the RMS change of each image of the goal when its steps last doubled.
    """

    noises: Noises
    goal: torch.Tensor
    moved: torch.Tensor
    seer: classifier.Classifier | None
    real: classifier.Statistics | None
    cache: Cache
    unseen: Unseen | None = None

    def row(self, plan: Plan, kind: str, fitted: Sequence[FittedStep]) -> tuple[Row, np.ndarray]:
        parts = [
            self.cache.recall(
                {"judged": block.key, "plan": plan.sha256, "goal": digest(self.goal[rows]), **self.judge_key},
                partial(self._block, block, rows, plan),
                block.network.meter,
            )
            for rows, block in self.noises.blocks()
        ]
        errors = gathered(np.concatenate([part["errors"] for part in parts]))
        low, high = interval(errors)
        fd = self.distance(gathered(np.concatenate([part["features"] for part in parts])))
        steps = tuple((step.error_before, step.error_after) for step in fitted)
        rmse, trimmed, median = averages(errors)
        row = Row(plan.solver, kind, plan.nfe, rmse, low, high, trimmed, median, fd, plan, steps)
        if self.unseen:
            seen = gathered(np.concatenate([part["judged"] for part in parts]))
            judged_fd, precision, recall = self.unseen.figures(seen)
            row = replace(row, judged_fd=judged_fd, precision=precision, recall=recall)
        return row, parts[0]["shown"]

    @property
    def judge_key(self) -> dict[str, str]:
        """What tells the second classifier, where there is one."""
        return {"judge": weights_sha256(self.unseen.network.state_dict())} if self.unseen else {}

    def check(self, least: float) -> None:
        """Raises UserError when the reference is too far from converged to have measured an error of ``least``.

        At second order it falls fourfold when steps double, so that a third of the last move is left.
        """
        if not self.convergence / 3 < 0.5 * least:
            raise UserError(
                f"the reference still moves by {self.convergence:.2g} when its steps double, too much to measure "
                f"errors of {least:.2g} by: the model's trajectories do not converge"
            )

    @property
    def convergence(self) -> float:
        return rms(self.moved)

    @property
    def unsettled(self) -> int:
        return int(total(np.array([(self.moved > CONVERGED).sum().item()], float))[0])

    def _block(self, block: Noises, rows: slice, plan: Plan) -> dict[str, np.ndarray]:
        images = block.sample(plan)
        errors = (images - self.goal[rows]).square().flatten(1).mean(1)
        return {
            "errors": errors.cpu().numpy(),
            "features": self.features(images),
            **({"judged": classifier.features(self.unseen.network, images.cpu()).numpy()} if self.unseen else {}),
            "shown": images[:SHOWN].float().cpu().numpy(),
        }

    def features(self, images: torch.Tensor) -> np.ndarray:
        if self.seer is None:
            return np.zeros((len(images), 0), np.float32)
        return classifier.features(self.seer, images.cpu()).numpy()

    def reference_figures(self) -> tuple[float, float, float] | None:
        """``Unseen.figures`` of the converged images."""
        if self.unseen is None:
            return None
        return self.unseen.figures(gathered(classifier.features(self.unseen.network, self.goal.cpu()).numpy()))

    def distance(self, features: np.ndarray) -> float | None:
        if self.real is None:
            return None
        return frechet.distance(classifier.statistics(torch.from_numpy(features)), self.real)


def judging(
    model: Denoiser,
    count: int,
    cache: Cache,
    progress: ProgressBars,
    first: int = REFERENCE_STEPS,
    allowed: float = CONVERGED,
) -> Judge:
    """``count`` noises that no fit sees, solved; ``first`` and ``allowed`` as for ``converged``."""
    noises = to_judge(model, count)
    goal, moved = converged(noises, cache, progress, first, allowed)
    if model.spec.shape != classifier.SHAPE:
        return Judge(noises, goal, moved, None, None, cache)
    return Judge(noises, goal, moved, *classifier.load(), cache, Unseen(*classifier.load_judge()))


def reference(noises: Noises, steps: int, cache: Cache, progress: ProgressBars) -> torch.Tensor:
    """Images [n, …] of the noises, by so many steps of ``REFERENCE``, evaluate/reference.py."""
    title = f"reference, {len(noises)} noises, {steps} steps"
    with progress(title, cost(1, steps) * len(noises)) as noises.network.meter.progress:
        return solution(noises, [noises.network.model.spec.sigma_max], steps, cache)[0.0]


def converged(
    noises: Noises,
    cache: Cache,
    progress: ProgressBars,
    first: int = REFERENCE_STEPS,
    allowed: float = CONVERGED,
    most: int = MOST_STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [n, …], each of as many steps as it takes to change by ``allowed`` or less, and that change [n], by RMS.

    The steps are ``first``, twice as many and so on, up to ``most``. A few noises, near where trajectories part, need
    many times the steps of the others.
    """
    steps, moving = first // 2, list(range(len(noises)))
    images = reference(noises, steps, cache, progress)
    moved = torch.full((len(noises),), torch.inf, dtype=images.dtype, device=images.device)
    while moving and steps < most:
        steps *= 2
        finer = reference(noises.some(moving), steps, cache, progress)
        moved[moving], images[moving] = image_errors(finer - images[moving]), finer
        moving = [place for place in moving if moved[place] > allowed]
    return images, moved


def captions(model: Denoiser, count: int) -> list[str]:
    """What a model that is told a text is told of the first judged noises: its tokens, read back; else nothing."""
    told = [
        (name, one.shape, one.text)
        for name, one in model.spec.called_with.conditions.items()
        if one.text and one.text.must_be_given
    ]
    if not told:
        return []
    name, (length,), text = told[0]
    ids = model.draw_raw(range(count), CHECK_STREAM, held=True)[name]
    words = loaded(text.content, int(length)).decode_batch(ids.tolist())
    return [" ".join(caption.replace(" ##", "").split()) for caption in words]  # ##: a word goes on
