"""Fits γ by least squares, from float64 Gram matrices, while the solver runs."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import total
from edge_sampler.calibration.solvers.base import Denoise, Scheme
from edge_sampler.calibration.trace import correct
from edge_sampler.runtime.fit_report import FittedStep

RIDGE = 1e-4  # relative weight of the pull toward the base solver, unless another is asked for

Target = Callable[[int, Tensor], Tensor]  # (step index, state before it) → the state to reach, [n, …]


def gram(tensors: Sequence[Tensor]) -> np.ndarray:
    """Inner products [k, k] in float64: all that a least-squares fit needs, summed over the processes' images."""
    flat = torch.stack([tensor.reshape(-1) for tensor in tensors]).double()
    return total((flat @ flat.T).cpu().numpy())


def solve(products: np.ndarray, ridge: float) -> np.ndarray:
    """γ [k] minimising |target - Σ γ_j·direction_j|² + ridge·Σ (|direction_j|·γ_j)².

    ``products`` is the Gram matrix [k+1, k+1] of the directions and, last, the target. Directions are scaled to unit
    length first, so ``ridge`` is relative; those that vanish, and combinations that vanish, get 0.
    """
    lengths = np.sqrt(np.diag(products)[:-1])
    scale = np.where(lengths > 0, 1 / np.where(lengths > 0, lengths, 1), 0.0)
    normal = products[:-1, :-1] * np.outer(scale, scale) + ridge * np.eye(len(scale))
    values, vectors = np.linalg.eigh(normal)
    usable = values > max(values.max(initial=0.0), 1.0) * 1e-13
    inverse = np.where(usable, 1 / np.where(usable, values, 1), 0.0)
    return scale * (vectors @ (inverse * (vectors.T @ (scale * products[:-1, -1]))))


def rms(difference: Tensor) -> float:
    """Root mean square over every pixel of every image, of all processes."""
    squares, count = total(np.array([difference.square().sum().item(), difference.numel()]))
    return float(np.sqrt(squares / count))


def image_errors(difference: Tensor) -> Tensor:
    """[n]: the RMS of each image, or each image's features."""
    return difference.square().flatten(1).mean(1).sqrt()


def mean_error(difference: Tensor) -> float:
    """The mean over every image, of all processes, of its RMS."""
    summed, count = total(np.array([image_errors(difference).sum().item(), len(difference)]))
    return float(summed / count)


def fit(
    scheme: Scheme,
    denoise: Denoise,
    x: Tensor,
    target: Target,
    fitting: int,
    ridge: float,
    paper: bool = False,
    labels: Tensor | None = None,
) -> tuple[list[FittedStep], Tensor]:
    """Runs ``scheme`` from x [n, …] and solves for each step's γ on the way; returns them, and the images [n, …].

    The first ``fitting`` images fit, the others are held out: a γ that does not lower their error is dropped. As in the
    ``paper``, arXiv 2304.11328, the first and the last step have none, and no other is dropped. ``labels`` [n] are the
    images' own, where the scheme has a mean for each.
    """
    steps: list[FittedStep] = []
    state, ends = x, (0, len(scheme.sigmas) - 2)

    def fit_step(base: Tensor, directions: Sequence[Tensor]) -> Tensor:
        nonlocal state
        missing = target(len(steps), state) - base
        gamma = np.zeros(len(directions))
        if directions and not (paper and len(steps) in ends):
            gamma = solve(gram([*(direction[:fitting] for direction in directions), missing[:fitting]]), ridge)
        before = rms(missing[fitting:])
        after = rms(correct(-missing[fitting:], [direction[fitting:] for direction in directions], gamma.tolist()))
        if not (after < before or paper):
            gamma, after = np.zeros(len(directions)), before
        steps.append(FittedStep(tuple(gamma.tolist()), before, after))
        state = correct(base, directions, steps[-1].gamma)
        return state

    images = scheme.run(denoise, x, fit_step, labels)
    return steps, images
