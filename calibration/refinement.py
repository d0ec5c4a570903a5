"""Joint refinement: Gauss-Newton over every number of a plan, on the error of its final images.

A sampler is a table, and has nothing else to choose: noise levels, scales of states and weights of past evaluations.
Refinement is Levenberg-Marquardt (Moré 1978) over all of them at once, from a fitted plan to another plan.

An iteration goes through the noises once, a few at each turn. The plan moves after each turn, by what these noises tell
and what the others told at their last, as in the incremental Gauss-Newton method (Bertsekas, "Incremental Least Squares
Methods and the Extended Kalman Filter", SIAM J. Optim. 6(3), 1996).

It minimises a power mean of images' RMS errors, with each image weighted by a power of its error (iteratively
reweighted least squares). By default it is their mean: a few noises err ten times as much as others, and squares would
fit those few, where new noises are not like them. On four times the noises they are.

``refine_over`` is for evaluations that differ from the model, such as quantised ones with their own scales. The plan
then corrects errors of rounding. Answers and errors come from these evaluations, but derivatives come from the model,
at the same states. The reason: after a small change of a state, values all through a network round to the other side,
and this noise hides the derivative. It also makes a few images leave their paths, other images with each plan. A mean
of errors would choose by those few images. So ``refine_over`` minimises the geometric mean, whose power is 0.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.derivatives import PROBE, SPAN, derivative_cost, derivatives
from edge_sampler.calibration.evaluate.distributed import BLOCK, total
from edge_sampler.calibration.evaluate.network import NotFiniteError
from edge_sampler.calibration.evaluate.noise_sets import Noises, digest
from edge_sampler.calibration.evaluate.results import Cache
from edge_sampler.calibration.fit import image_errors
from edge_sampler.calibration.rounding import rounding_error
from edge_sampler.calibration.views import PIXELS, View
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.models.spec import check_alike
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

TURN = (16, 32)  # noises of a turn: a quarter of all, but within these, or somewhat more to divide their number
MEANS = {0: "mean logarithm of errors", 1: "mean error", 2: "mean squared error"}  # by power
LEAST = 1e-6  # an image's error below this counts as this
ITERATIONS = 10  # at the most, unless others are asked for
PATIENCE = 4  # turns in a row that gain nothing are the last, or half of all, once each noise has had one
ENOUGH = 0.01  # lowering the held-out noises' least error by less than this part of it is nothing
MEMORY = 2 * 2**30  # bytes that derivatives may take, or those of one noise where they take more
DAMPING = 1e-3  # at first; relative to the diagonal
DAMPINGS = (0.01, 0.1, 1.0, 10.0, 100.0)  # times the last one, tried each time


@dataclass(frozen=True)
class Refinement:
    """The plan that did best on the held-out noises, and each iteration's least error there, the first before any.

    Errors are power means of images' RMS errors.
    """

    plan: Plan
    errors: tuple[float, ...]


def refine(
    plan: Plan,
    noises: Noises,
    converged: Tensor,
    iterations: int,
    cache: Cache,
    progress: ProgressBars = silent,
    view: View = PIXELS,
    memory: int = MEMORY,
    at_a_turn: tuple[int, int] = TURN,
    power: int = 1,
) -> Refinement:
    """Refines ``plan`` so that its images come near ``converged`` [n, …]; never worse than it on the held-out noises.

    A turn takes derivatives on a quarter of the noises, within ``at_a_turn``, and of five dampings the one that brings
    their images nearest; its plan is then judged by the noises held out. There are ``iterations`` through all noises
    that fit, or fewer: turns that hardly gain on the noises held out are the last. Errors are of what ``view`` shows,
    and of all images their mean of that ``power``: the mean (1), the RMS (2) or the geometric mean (0).

    In memory are noises and converged images, and beside them ``memory``, or ``noise_bytes`` where that is more.
    """
    spec, meter = noises.network.model.spec, noises.network.meter
    damping, differ = DAMPING, bool(noises.network.evaluations)
    at_once = noises_at_once(plan, converged, view, memory)

    def error(plan: Plan, part: Noises, goal: Tensor) -> float:
        def sums() -> dict[str, np.ndarray]:
            told = 0.0
            for rows, few in pieces(part, at_once * BLOCK):
                aim = view(goal[rows])
                try:
                    errors = image_errors(view(few.sample(plan)) - aim)
                except NotFiniteError:  # a step that went too far
                    return {"sums": np.array([np.inf, len(part)])}
                told += (errors**power if power else errors.clamp_min(LEAST).log()).sum().item()
            return {"sums": np.array([told, len(part)])}

        key = {MEANS[power]: part.key, "goal": digest(goal), "plan": plan.sha256, "view": view.key}
        errors, count = total(cache.recall(key, sums, meter)["sums"])
        told = (errors / count) ** (1 / power) if power else np.exp(errors / count)
        return float(np.hypot(told, rounding_error(plan)))  # what it errs by itself, and by rounding

    turns, heldout = turns_of(noises, converged, at_a_turn), (noises.heldout, converged[noises.fitting :])
    known = dict[int, Equations]()  # what the noises of each turn told last
    entries = [len(row) for row in plan.table[:-1]]
    patience = max(PATIENCE, len(turns) // 2)
    cost = iteration_cost(entries, noises.fitting, len(noises.heldout), len(turns), differ)
    made = [(error(plan, *heldout), plan)]
    errors = [made[0][0]]

    def idle() -> bool:
        gained = [error for error, _ in made]
        least, before = min(gained[-patience:]), min(gained[:-patience], default=np.inf)
        return len(made) > len(turns) and least > (1 - ENOUGH) * before

    for iteration in range(iterations):
        with progress(f"refinement {iteration + 1} of up to {iterations}", cost) as meter.progress:
            for turn, (part, goal) in enumerate(turns):
                if idle():
                    break
                now = parameters(plan)
                known[turn] = Equations(now, *normal_equations(part, goal, plan, view, cache, at_once, power))
                matrix, slope = summed(known.values(), now)
                tried = [(error(plan, part, goal), damping * 1000, plan)]  # staying is allowed, and damps more
                for factor in DAMPINGS:
                    moved = step(plan, matrix, slope, damping * factor, (spec.sigma_min, spec.sigma_max))
                    tried.append((error(moved, part, goal), damping * factor, moved))
                _, damping, plan = min(tried, key=lambda trial: trial[0])
                made.append((error(plan, *heldout), plan))
        errors.append(min(error for error, _ in made[1 + iteration * len(turns) :]))
        if idle():
            break
    return Refinement(min(made, key=lambda one: one[0])[1], tuple(errors))


def refine_over(
    evaluations: Sequence[Denoiser],
    plan: Plan,
    noises: Noises,
    converged: Tensor,
    iterations: int,
    cache: Cache,
    progress: ProgressBars = silent,
    view: View = PIXELS,
) -> Refinement:
    """``refine`` of a sampler whose k-th evaluation is ``evaluations[k]``, and not the network of ``noises``.

    Any denoiser will do that takes what the model takes and answers nearly as it does, such as ``OnnxDenoiser`` of a
    graph that is quantised with the scales of that evaluation: derivatives are the model's. Results are kept by their
    fingerprints. ``converged`` are the model's. Raises UserError for another number of evaluations than the plan has,
    and for one of other inputs.
    """
    if len(evaluations) != plan.nfe:
        raise UserError(f"the plan has {plan.nfe} evaluations, and there are functions for {len(evaluations)}")
    for one in evaluations:
        check_alike(one.spec, noises.network.model.spec)
    return refine(plan, noises.over(evaluations), converged, iterations, cache, progress, view, power=0)


@dataclass(frozen=True)
class Equations:
    """Normal equations of some noises, JᵀJ [p, p] and Jᵀr [p], where a plan's parameters were ``values`` [p]."""

    values: np.ndarray
    matrix: np.ndarray
    slope: np.ndarray


def summed(every: Collection[Equations], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """JᵀJ and Jᵀr of all, r as each has it at ``values``."""
    slopes = [one.slope + one.matrix @ (values - one.values) for one in every]
    return np.sum([one.matrix for one in every], axis=0), np.sum(slopes, axis=0)


def number_of_turns(fitting: int, at_a_turn: tuple[int, int] = TURN) -> int:
    """Of an iteration through so many noises."""
    least, most = at_a_turn
    return max(1, fitting // min(max(fitting // 4, least), most))


def turns_of(noises: Noises, converged: Tensor, at_a_turn: tuple[int, int]) -> list[tuple[Noises, Tensor]]:
    """This process's noises of each turn, and their converged images [n, …]. By seeds, as ``share`` deals them."""
    number = number_of_turns(int(total(np.array([noises.fitting], float))[0]), at_a_turn)
    places = [
        [place for place in range(noises.fitting) if noises.seeds[place] % number == turn] for turn in range(number)
    ]
    return [(noises.some(some), converged[some]) for some in places]


def step(plan: Plan, matrix: np.ndarray, slope: np.ndarray, damping: float, limits: tuple[float, float]) -> Plan:
    """The damped Gauss-Newton step from ``plan``, the noise levels that it tells kept within ``limits``."""
    length = np.sqrt(np.diag(matrix))
    length = np.where(length > 0, length, 1.0)
    change = np.linalg.solve(matrix / np.outer(length, length) + damping * np.eye(len(length)), slope / length) / length
    return with_parameters(plan, parameters(plan) - change, limits)


def normal_equations(
    noises: Noises, converged: Tensor, plan: Plan, view: View, cache: Cache, at_once: int = BLOCK, power: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """JᵀJ [p, p] and Jᵀr [p] of what ``view`` shows, r against that of ``converged`` [n, …]; kept block by block.

    Summed over what is seen of an image, over images, each weighed by its error to the ``power`` - 2, and over
    processes. Derivatives are of so many noises ``at_once``.
    """

    def products(few: Noises, goal: Tensor) -> np.ndarray:
        images, derivative = derivatives(few.network, few.noise, plan)
        seen = view(images)
        wrong = seen - view(goal)
        errors = image_errors(wrong).clamp_min(LEAST).view(-1, *[1] * (wrong.dim() - 1))
        weights = errors ** (power / 2 - 1)
        step = PROBE / derivative.flatten(1).square().mean(1).sqrt().clamp_min(1e-30)
        moved = images + step.view(-1, *[1] * images.dim()) * derivative
        changed = view(moved.flatten(0, 1)).view(len(step), *seen.shape) - seen
        flat = torch.cat([(weights * changed).flatten(1) / step[:, None], (weights * wrong).reshape(1, -1)])
        return (flat @ flat.T).cpu().numpy()

    def sums(block: Noises, goal: Tensor) -> dict[str, np.ndarray]:
        made = np.zeros((size, size))
        for rows, few in pieces(block, at_once):
            with suppress(NotFiniteError):  # beside where the sampler goes: these noises tell nothing
                made += products(few, goal[rows])
        return {"products": made}

    size = len(parameters(plan)) + 1
    summed = np.zeros((size, size))
    for rows, block in noises.blocks():
        goal = converged[rows]
        key = {"weighted normal equations": block.key, "goal": digest(goal), "plan": plan.sha256, "view": view.key}
        key |= {"differences": f"{PROBE}, {SPAN}, within the levels"}
        key |= {"derivatives": "of the model"} if noises.network.evaluations else {}
        key |= {"lowers": MEANS[power]} if power != 1 else {}
        summed += cache.recall(key, partial(sums, block, goal), noises.network.meter)["products"]
    summed = total(summed)
    return summed[:-1, :-1], summed[:-1, -1]


def noise_bytes(numbers: int, nfe: int, values: int, seen: int) -> int:
    """What one noise's derivatives by so many ``numbers`` take in memory, at the most.

    Of states of so many ``values``, of which so many are ``seen``.
    """
    return 8 * numbers * ((nfe + 3) * values + 3 * seen)


def refinement_bytes(one: int, memory: int = MEMORY) -> int:
    """What refinement takes beside noises and images: for a block of noises, or as many as ``memory`` holds.

    ``one`` is ``noise_bytes``.
    """
    return max(one, min(BLOCK * one, memory))


def noises_at_once(plan: Plan, images: Tensor, view: View, memory: int = MEMORY) -> int:
    """Of how many noises derivatives fit ``memory``, of images [n, …]; 1 at the least, ``BLOCK`` at the most."""
    one = images[:1]
    each = noise_bytes(len(parameters(plan)), plan.nfe, one.numel(), view(one).numel())
    return max(1, min(BLOCK, memory // each))


def pieces(noises: Noises, size: int) -> Iterator[tuple[slice, Noises]]:
    """So many at a time, and which."""
    for start in range(0, len(noises), size):
        rows = slice(start, min(start + size, len(noises)))
        yield rows, noises.part(rows)


def parameters(plan: Plan) -> np.ndarray:
    """The plan as one vector: for each evaluation its row of the table and ln σ, then the images' row."""
    levels = [[np.log(sigma)] for sigma in plan.sigmas]
    return np.concatenate([part for row, level in zip(plan.table, [*levels, []], strict=True) for part in (row, level)])


def with_parameters(plan: Plan, values: np.ndarray, limits: tuple[float, float] = (0.0, np.inf)) -> Plan:
    """The inverse of ``parameters``; noise levels are clipped to ``limits``."""
    rows, start = [], 0
    sigmas: list[float] = []
    for row in plan.table:
        rows.append(tuple(values[start : start + len(row)].tolist()))
        start += len(row)
        if len(sigmas) < plan.nfe:
            with np.errstate(over="ignore"):  # what float64 cannot hold is beyond any limit
                sigmas.append(float(np.clip(np.exp(values[start]), *limits)))
            start += 1
    return replace(plan, sigmas=tuple(sigmas), table=tuple(rows))


def iteration_cost(entries: Sequence[int], fitting: int, heldout: int, turns: int, differ: bool = False) -> int:
    """Evaluations of one sample that an iteration through so many noises spends.

    Where evaluations ``differ`` from the model, derivatives are the model's, and each answer is one evaluation more.
    """
    nfe = len(entries)
    return (derivative_cost(entries) + nfe * (1 + differ + len(DAMPINGS))) * fitting + turns * nfe * heldout
