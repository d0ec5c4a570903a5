"""What the solver families share: their vocabulary, and the loop of those that evaluate once a step.

A solver is textbook code over anything with ``*`` and ``+``. Run on images it samples; run on coefficient vectors it
yields its table (``calibration.trace``); run with a hook that solves least squares it is calibrated
(``calibration.fit``). It hands every step to the hook, ``x = step(base, directions)``: the solver's own update, and
the directions along which IIA (arXiv 2304.11328) may correct it. γ = 0 is the solver itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Denoise = Callable[[Any, float], Any]  # (x, sigma) → denoised, shaped as x
Step = Callable[[Any, Sequence[Any]], Any]  # (base update, directions) → next x


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation on the way: the state x at noise level sigma, and its denoised image."""

    sigma: float
    x: Any
    denoised: Any

    @property
    def d(self) -> Any:
        """dx/dσ of the probability-flow ODE, arXiv 2206.00364, eq. 3; also the noise estimate ε̂."""
        return (self.x + -1.0 * self.denoised) * (1 / self.sigma)


@dataclass(frozen=True)
class Solver:
    """A solver by name, with or without corrections.

    ``run(denoise, x, sigmas, step, history, nfe)`` integrates x, [n, …] at noise level sigmas[0], down to sigmas[-1],
    and hands every step the directions that ``history`` earlier steps give. It evaluates as often as the method asks,
    or ``nfe`` times where that is one less. ``steps(nfe)`` is how many grid intervals nfe evaluations pay for.
    """

    name: str
    run: Callable[..., Any]
    order: int  # of the base solver's global error, on grids that refine one smooth function
    steps: Callable[[int], int] = lambda nfe: nfe
    history: int | None = None  # the paper's r; None: a fixed solver, never corrected
    aliases: tuple[str, ...] = ()
    clip: float = 0.0  # the bound to which it clips each answer, beside using it as it is; 0: it does not


@dataclass(frozen=True)
class Scheme:
    """A solver on one grid, ``sigmas`` from the highest level to 0, with ``nfe`` evaluations.

    With an analytical first step (AFS), the first of them is answered by ``mean``, an image shaped as one of x: at the
    highest noise level the network answers with little else than the mean of the data.
    """

    solver: Solver
    sigmas: Sequence[float]
    nfe: int
    history: int = 0  # past steps that corrections may weigh
    mean: Any = None

    def run(self, denoise: Denoise, x: Any, step: Step) -> Any:
        """From x [n, …] at noise level sigmas[0] to images [n, …]."""
        known = [] if self.mean is None else [0.0 * x + self.mean]
        return self.solver.run(after(known, denoise), x, self.sigmas, step, self.history, self.nfe)


def after(known: Sequence[Any], denoise: Denoise) -> Denoise:
    """``denoise``, its first answers being ``known``."""
    waiting = list(known)
    return lambda x, sigma: waiting.pop(0) if waiting else denoise(x, sigma)


def base_step(base: Any, directions: Sequence[Any]) -> Any:
    """The base solver's step: no correction."""
    return base


def differences(past: Sequence[Evaluation], history: int) -> list[Any]:
    """IIA's directions for solvers with one evaluation a step: x̂_i - x̂_{i-1} and ε̂_i - ε̂_{i-1}, ``history`` times.

    arXiv 2304.11328, its DDIM section; x̂ is the denoised image, ε̂ the noise estimate. None at the first step.
    """
    found: list[Any] = []
    for newer, older in pairwise(past[: history + 1]):
        found += [newer.denoised + -1.0 * older.denoised, newer.d + -1.0 * older.d]
    return found


def multistep(
    rule: Callable[[list[Evaluation], float], Any],
    directions: Callable[[Sequence[Evaluation], int], list[Any]] = differences,
    last: Callable[[Evaluation], Any] = lambda now: now.denoised,
) -> Callable[..., Any]:
    """The solver that evaluates once a step and applies ``rule(evaluations so far, newest first; next sigma)``.

    A step to σ = 0 is ``last``: Euler's, which there is the denoised image itself, as in k-diffusion and diffusers.
    """

    def run(denoise: Denoise, x: Any, sigmas: Sequence[float], step: Step, history: int, nfe: int | None = None) -> Any:
        past: list[Evaluation] = []
        for sigma, sigma_next in pairwise(sigmas):
            past.insert(0, Evaluation(sigma, x, denoise(x, sigma)))
            base = rule(past, sigma_next) if sigma_next > 0 else last(past[0])
            x = step(base, directions(past, history))
        return x

    return run
