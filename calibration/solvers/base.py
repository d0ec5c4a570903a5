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

from edge_sampler.runtime.plan import rows_of

Denoise = Callable[[Any, float], Any]  # (x, sigma) → denoised, shaped as x
Step = Callable[[Any, Sequence[Any]], Any]  # (base update, directions) → next x


@dataclass(frozen=True)
class Evaluation:
    """One network evaluation on the way.

    Args:
        sigma: the noise level, in the data's units.
        x: the state, [n, …].
        denoised: the network's answer, shaped as x.

    Examples:
        >>> from edge_sampler.calibration.solvers.base import Evaluation
        >>> Evaluation(2.0, x=np.array([3.0]), denoised=np.array([1.0])).d
        array([1.])
    """

    sigma: float
    x: Any
    denoised: Any

    @property
    def d(self) -> Any:
        """dx/dσ of the probability-flow ODE, arXiv 2206.00364, eq. 3; also the noise estimate ε̂."""
        return (self.x + -1.0 * self.denoised) * (1 / self.sigma)


@dataclass(frozen=True)
class Solver:
    """A solver by name, with or without corrections. A file in calibration/solvers/ with a tuple ``SOLVERS`` adds some.

    Args:
        name: its name on command lines.
        run: ``run(denoise, x, sigmas, step, history, nfe)`` integrates x, [n, …] at noise level sigmas[0], down to
            sigmas[-1], and makes each step by the hook: ``x = step(base, directions)``, of the solver's own update and
            the directions that ``history`` earlier steps give. It evaluates as often as the method asks, or ``nfe``
            times where that is one less. ``multistep`` makes one of a formula.
        order: the order of the base solver's global error, on grids that refine one smooth function.
        steps: ``steps(nfe)`` is how many grid intervals nfe evaluations pay for.
        history: r of arXiv 2304.11328; None: a fixed solver, never corrected.
        aliases: other names.
        clip: the bound to which it clips each answer; it also uses the answer as it is. 0: no clipping.

    Examples:
        >>> from edge_sampler.calibration.solvers.base import Solver, multistep
        >>> def euler(past, sigma_next):
        ...     return past[0].x + (sigma_next - past[0].sigma) * past[0].d
        >>> mine = Solver("iia-mine", multistep(euler), order=1, history=1)
        >>> mine.steps(6), mine.once_a_step
        (6, True)
    """

    name: str
    run: Callable[..., Any]
    order: int
    steps: Callable[[int], int] = lambda nfe: nfe
    history: int | None = None
    aliases: tuple[str, ...] = ()
    clip: float = 0.0

    @property
    def once_a_step(self) -> bool:
        """Whether it evaluates once a step. One that evaluates twice makes fewer steps of four evaluations."""
        return self.steps(4) == 4


@dataclass(frozen=True)
class Scheme:
    """A solver on one grid.

    Args:
        solver: the solver.
        sigmas: noise levels, from the highest to 0.
        nfe: evaluations.
        history: past steps that corrections may weight.
        mean: with an analytical first step (AFS, arXiv 2210.05475), what answers in place of the first evaluation,
            shaped as one of x, or one for each label: at the highest noise level the network answers with little else
            than the mean of the data. None: there is none.

    Examples:
        >>> from edge_sampler.calibration.solvers import find
        >>> from edge_sampler.calibration.solvers.base import Scheme, base_step
        >>> scheme = Scheme(find("ddim"), [80.0, 2.5, 0.0], nfe=2)
        >>> scheme.run(lambda x, sigma: x / (1 + sigma**2), np.full(1, 80.0), base_step).round(3)
        array([0.346])
    """

    solver: Solver
    sigmas: Sequence[float]
    nfe: int
    history: int = 0
    mean: Any = None

    def run(self, denoise: Denoise, x: Any, step: Step, labels: Any = None) -> Any:
        """Samples.

        Args:
            denoise: ``denoise(x, sigma)`` returns the clean data, shaped as x.
            x: states at noise level sigmas[0], [n, …].
            step: the hook that makes each step, such as ``base_step``.
            labels: each sample's label, whole numbers [n], where there is a mean for each.

        Returns:
            Images, shaped as x.
        """
        known = [] if self.mean is None else [0.0 * x + rows_of(self.mean, x, labels)]
        return self.solver.run(after(known, denoise), x, self.sigmas, step, self.history, self.nfe)


def after(known: Sequence[Any], denoise: Denoise) -> Denoise:
    """``denoise``, its first answers being ``known``."""
    waiting = list(known)
    return lambda x, sigma: waiting.pop(0) if waiting else denoise(x, sigma)


def base_step(base: Any, directions: Sequence[Any]) -> Any:
    """The hook of a fixed solver: no correction.

    Args:
        base: the solver's own update, [n, …].
        directions: the directions along which a fit corrects it, [n, …] each.

    Returns:
        ``base``.

    Examples:
        >>> from edge_sampler.calibration.solvers.base import base_step
        >>> base_step(3.0, [1.0, 2.0])
        3.0
    """
    return base


def differences(past: Sequence[Evaluation], history: int) -> list[Any]:
    """IIA's directions for solvers with one evaluation a step: ``x̂_i - x̂_{i-1}`` and ``ε̂_i - ε̂_{i-1}``.

    arXiv 2304.11328, its DDIM section; x̂ is the denoised image, ε̂ the noise estimate.

    Args:
        past: evaluations so far, newest first.
        history: the number of earlier steps to use.

    Returns:
        Two for each earlier step that there is, shaped as x; none at the first step.

    Examples:
        >>> from edge_sampler.calibration.solvers.base import Evaluation, differences
        >>> newer, older = Evaluation(1.0, 2.0, 1.0), Evaluation(2.0, 4.0, 0.5)
        >>> differences([newer, older], history=1)
        [0.5, -0.75]
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
    """Makes a solver's ``run`` of a formula, for methods with one evaluation a step.

    Args:
        rule: ``rule(past, sigma_next)`` returns x at the next noise level, of the evaluations so far, newest first.
        directions: ``directions(past, history)`` returns the directions along which a fit corrects the step.
        last: ``last(evaluation)`` returns the images of the step to σ = 0: Euler's, which there is the denoised image
            itself, as in k-diffusion and diffusers.

    Returns:
        What ``Solver`` takes for ``run``.

    Examples:
        >>> from edge_sampler.calibration.solvers.base import Scheme, Solver, multistep
        >>> from edge_sampler.calibration.trace import trace
        >>> def euler(past, sigma_next):
        ...     return past[0].x + (sigma_next - past[0].sigma) * past[0].d
        >>> trace(Scheme(Solver("mine", multistep(euler), order=1), [80.0, 2.5, 0.0], nfe=2)).table
        ((80.0,), (2.5, 0.96875), (0.0, 0.0, 1.0))
    """

    def run(denoise: Denoise, x: Any, sigmas: Sequence[float], step: Step, history: int, nfe: int | None = None) -> Any:
        past: list[Evaluation] = []
        for sigma, sigma_next in pairwise(sigmas):
            past.insert(0, Evaluation(sigma, x, denoise(x, sigma)))
            base = rule(past, sigma_next) if sigma_next > 0 else last(past[0])
            x = step(base, directions(past, history))
        return x

    return run
