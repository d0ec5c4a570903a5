"""One candidate: a solver on a grid of noise levels, fitted and measured on the held-out noises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from edge_sampler.calibration.chosen_levels import Grid
from edge_sampler.calibration.evaluate.distributed import processes
from edge_sampler.calibration.evaluate.network import Network, NotFiniteError
from edge_sampler.calibration.evaluate.noise_sets import Noises, digest, to_fit
from edge_sampler.calibration.evaluate.reference import States, local_target
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import Target, fit, mean_error, rms
from edge_sampler.calibration.schedules import SCHEDULES
from edge_sampler.calibration.scout import Ground, attempt
from edge_sampler.calibration.settings import OWN, Settings
from edge_sampler.calibration.solvers.base import Scheme, Solver, base_step
from edge_sampler.calibration.trace import trace
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.fit_report import FittedStep
from edge_sampler.runtime.plan import Plan


@dataclass(frozen=True)
class Candidate:
    """A solver made ready: its plan, and its final images' errors on the held-out noises.

    ``error`` is the mean of each image's RMS error, which a few do not decide: the least is the best.
    """

    plan: Plan
    error: float
    rms_error: float
    steps: tuple[FittedStep, ...]


def noises_of(model: Denoiser, settings: Settings, drawn_by: Denoiser | None = None) -> Noises:
    """Those to fit on; ``drawn_by`` as for ``to_fit``."""
    return to_fit(model, settings.fit_batch, settings.heldout, settings.seed, settings.temperature, drawn_by)


def aims_of(noises: Noises, model: Denoiser, towards: Denoiser, settings: Settings) -> Noises:
    """The same noises, denoised by the model that a fit aims at, and told by its own encoder what ``model`` is told."""
    others = noises_of(towards, settings, model)
    return replace(others, network=replace(others.network, meter=noises.network.meter))


def grid_of(model: Denoiser, schedule: str) -> Grid:
    """The grids of one of ``SCHEDULES``, within the model's range, or its own."""
    if schedule == OWN:
        assert model.own_levels, "task_of refuses others"
        return model.own_levels
    return lambda steps: SCHEDULES[schedule](steps, model.spec.sigma_min, model.spec.sigma_max)


def scheme_of(solver: Solver, grid: Grid, settings: Settings, mean: Tensor | None = None) -> Scheme:
    """The solver on the noise levels that ``settings.nfe`` evaluations pay for, one more with a ``mean`` for AFS.

    For a solver that clips, the mean lies within its bound: a table has no second column for it.
    """
    history = solver.history if settings.history is None or solver.history is None else settings.history
    answers = settings.nfe + (mean is not None)
    if mean is not None and solver.clip:
        mean = mean.clip(-solver.clip, solver.clip)
    return Scheme(solver, grid(solver.steps(answers)), answers, history or 0, mean)


def local_targets(scheme: Scheme, network: Network, fine_steps: int) -> Target:
    """Step i aims at where the solver itself goes from the coarse state, in fine steps: the paper's target."""
    return lambda index, state: local_target(
        scheme.solver, network, state, scheme.sigmas[index], scheme.sigmas[index + 1], fine_steps
    )


def make_candidate(
    scheme: Scheme,
    noises: Noises,
    fine: Mapping[float, Tensor],
    target: str,
    settings: Settings,
    cache: Cache = NO_CACHE,
    aims: Noises | None = None,
) -> Candidate:
    """Fits the scheme, where it can be fitted, and measures its final images on the held-out noises.

    ``fine`` has the same-noise solution at each of its noise levels: what the global target aims at. ``aims`` are the
    noises by another model, where that one's fine steps are the local target.
    """
    goals = [fine[sigma] for sigma in scheme.sigmas[1:]]

    def fitted() -> dict[str, np.ndarray]:
        """Errors of the images, and by each step's place its errors and γ."""
        steps: list[FittedStep] = []
        x, heldout = scheme.sigmas[0] * noises.noise, slice(noises.fitting, None)
        if scheme.solver.history is None:
            judging = noises.heldout.network
            images = scheme.run(judging, x[heldout], base_step, judging.labels)
        else:
            aimed: Target = lambda index, state: goals[index]  # noqa: E731
            if target == "local":
                aimed = local_targets(scheme, (noises if aims is None else aims).network, settings.fine_steps)
            network, ridge = noises.network, settings.ridge
            steps, images = fit(scheme, network, x, aimed, noises.fitting, ridge, settings.paper, network.labels)
            images = images[heldout]
        wrong = images - goals[-1][heldout]
        each = {str(i): np.array([step.error_before, step.error_after, *step.gamma]) for i, step in enumerate(steps)}
        return {"errors": np.array([mean_error(wrong), rms(wrong)]), **each}

    key = {
        "fit": noises.key,
        "fitting": noises.fitting,
        "scheme": [scheme.solver.name, list(scheme.sigmas), scheme.nfe, scheme.history],
        "target": [target, settings.fine_steps, settings.ridge, *map(digest, goals)],
    }
    if settings.paper:
        key["paper"] = True
    if scheme.mean is not None:
        key["mean"] = digest(scheme.mean)
    kept = cache.recall_together(key, fitted, noises.network.meter)
    error, rms_error = kept.pop("errors").tolist()
    steps = []
    for before, after, *gamma in (kept[str(i)].tolist() for i in range(len(kept))):
        steps.append(FittedStep(tuple(gamma), before, after))
    return Candidate(trace(scheme, [step.gamma for step in steps]), error, rms_error, tuple(steps))


def race(schemes: Sequence[Scheme], noises: Noises, fine: States, cache: Cache = NO_CACHE) -> list[float]:
    """The mean error of each scheme's images, fitted to half of the held-out noises, on which no search was.

    Infinite where a scheme leads the network to answers that are not finite.
    """
    ground = Ground.of(noises.heldout, fine.part(slice(noises.fitting, None)))
    key = {"race": ground.noises.key, "schemes": [[one.solver.name, one.history] for one in schemes]}
    key |= {"levels": [list(one.sigmas) for one in schemes], "fine": [digest(fine[sigma]) for sigma in fine]}
    key |= {"means": [digest(one.mean) for one in schemes if one.mean is not None]}

    def error(scheme: Scheme) -> float:
        try:
            return attempt(scheme, ground).error
        except NotFiniteError:
            if processes() > 1:  # the others wait for sums of this one
                raise
            return np.inf

    def run() -> dict[str, np.ndarray]:
        return {"errors": np.array([error(scheme) for scheme in schemes])}

    errors: list[float] = cache.recall_together(key, run, noises.network.meter)["errors"].tolist()
    return errors
