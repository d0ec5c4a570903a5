"""The derivative of a sampler's error by every number of its table, through the network: what LD3 and BNS descend.

A sampler is a table, so that one derivative serves whatever the table is made of: a solver's noise levels, or free
coefficients. How the table hangs on those is differentiated by differences, which cost no evaluation.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.backends.cudnn import flags

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, terms_before

BACKWARD = 2  # evaluations that going back through one counts as
NUDGE = 1e-5  # of a parameter, to differentiate the table by

Loss = Callable[[Tensor], Tensor]  # mean squared error of each image [n] → number


def flat(plan: Plan) -> np.ndarray:
    """The plan as one vector: its table's entries, then its noise levels."""
    return np.concatenate([*map(np.array, plan.table), np.array(plan.sigmas)])


def descent(network: Network, noise: Tensor, goal: Tensor, plan: Plan, loss: Loss) -> tuple[np.ndarray, Tensor]:
    """Derivatives of the images' ``loss``, against the ``goal`` [n, …]: by ``flat(plan)``, and by the noise [n, …].

    Raises UserError where the network cannot be differentiated.
    """
    with torch.enable_grad(), flags(enabled=True, deterministic=True, allow_tf32=False):
        start = noise.detach().clone().requires_grad_()
        rows = [noise.new_tensor(row).requires_grad_() for row in plan.table]
        levels = [noise.new_tensor(sigma).requires_grad_() for sigma in plan.sigmas]
        terms = terms_before(start, plan)
        for row, level in zip(rows, levels, strict=False):
            terms.append(answer(network, mixed(row, terms), level))
        wrong = mixed(rows[-1], terms) - goal
        found = torch.autograd.grad(loss(wrong.square().flatten(1).mean(1)), [*rows, *levels, start])
    return torch.cat([one.reshape(-1) for one in found[:-1]]).cpu().numpy(), found[-1]


def mixed(row: Tensor, terms: list[Tensor]) -> Tensor:
    """Σ row·terms."""
    total = row[0] * terms[0]
    for weight, term in zip(row[1:], terms[1:], strict=True):
        total = total + weight * term
    return total


def answer(network: Network, x: Tensor, sigma: Tensor) -> Tensor:
    """What ``network`` answers, differentiable; counted as one evaluation and the way back."""
    told = {name: value.clone() for name, value in network.conditions.items()}  # made where nothing is differentiable
    denoised = network.model(x.float(), sigma.float(), **told).double()
    if not denoised.requires_grad:
        raise UserError(
            f"{network.model.spec.title} cannot be differentiated, as LD3 and BNS must; leave them out of --rivals"
        )
    network.meter.count((1 + BACKWARD) * len(x), network.model.spec.branches)
    return denoised


def by_parameters(plan_of: Callable[[np.ndarray], Plan], parameters: np.ndarray) -> np.ndarray:
    """d flat(plan) / d parameters [entries, parameters], by central differences."""
    columns = []
    for unit in np.eye(len(parameters)):
        up, down = (flat(plan_of(parameters + side * NUDGE * unit)) for side in (1, -1))
        columns.append((up - down) / (2 * NUDGE))
    return np.stack(columns, axis=1)
