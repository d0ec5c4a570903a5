"""How a sampler's images change with each number of its plan, by forward differences of the network.

A change of one number moves all later states. A network is asked about few such moves: along a state's principal
directions, which carry nearly all that earlier numbers do to it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.runtime.plan import Plan, terms_before, weighted_sum

PROBE = 0.01  # size of finite differences, in units of the noise level that they disturb
SPAN = 3.0  # of p numbers, a network is asked along SPAN·√p directions


def directions(numbers: int) -> int:
    """How many principal directions stand for what so many numbers of a plan do to a state."""
    return min(numbers, math.ceil(SPAN * math.sqrt(numbers)))


def derivative_cost(entries: Sequence[int]) -> int:
    """What ``derivatives`` costs an image: at each evaluation one, one for each direction, and one for its noise level.

    ``entries`` are how many the row of each evaluation has.
    """
    return int(sum(2 + directions(so_far + earlier) for earlier, so_far in enumerate(np.cumsum(entries))))


def derivatives(network: Network, noise: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """Images [n, …] of unit ``noise`` [n, …], and their derivatives [parameters, n, …].

    A change of row k reaches the images through evaluations k … nfe-1 (``derivative_cost``); one of the images' own
    row costs nothing. Differences are the model's, around states that evaluations of another kind lead to.
    """
    n, shape, exact = len(noise), noise.shape, replace(network, evaluations=())
    terms = [term.expand_as(noise) for term in terms_before(noise, plan, network.labels)]
    tangents = [noise.new_zeros(0, *shape) for _ in terms]  # of each term, by the parameters that come before it

    def pushed(row: Sequence[float]) -> Tensor:
        """d(Σ row·terms): what earlier parameters do through the terms, then what each entry of the row does."""
        through = noise.new_zeros(len(tangents[-1]), *shape)
        for weight, tangent in zip(row, tangents, strict=True):
            through[: len(tangent)] += weight * tangent
        return torch.cat([through, torch.stack(terms)])

    for place, (sigma, row) in enumerate(zip(plan.sigmas, plan.table, strict=False)):
        x = weighted_sum(row, terms)
        parts, along = principal(pushed(row), PROBE * sigma)
        denoised = exact(torch.cat([x, (x + along).flatten(0, 1)]), sigma)
        aside = PROBE if sigma * (1 + PROBE) <= network.model.spec.sigma_max else -PROBE  # a network knows no others
        elsewhere = exact(x, sigma * (1 + aside))
        taken = network.at(place)(x, sigma) if network.evaluations else denoised[:n]
        for bound in (torch.inf, plan.clip) if plan.clip else (torch.inf,):
            answer, moved, other = (each.clamp(-bound, bound) for each in (denoised[:n], denoised[n:], elsewhere))
            terms.append(taken.clamp(-bound, bound))
            changed = torch.einsum("npr,rnd->pnd", parts, (moved.view_as(along) - answer).flatten(2))
            by_level = (other - answer) / np.log1p(aside)
            tangents.append(torch.cat([changed.view(-1, *shape), by_level[None]]))
    return weighted_sum(plan.table[-1], terms), pushed(plan.table[-1])


def principal(tangents: Tensor, size: float) -> tuple[Tensor, Tensor]:
    """Parts [n, p, r] and moves [r, n, *shape] of RMS ``size``, with tangents [p, n, *shape] nearly Σ parts·moves.

    Moves are the principal components of each noise's tangents, where all tangents count alike.
    """
    length = tangents.flatten(2).square().mean(2).sqrt().clamp_min(1e-30)
    unit = tangents.flatten(2) / length[..., None]
    products = torch.einsum("pnd,qnd->npq", unit, unit)
    vectors = torch.linalg.eigh(products).eigenvectors[..., -directions(len(tangents)) :]
    along = torch.einsum("npr,pnd->rnd", vectors, unit)
    step = size / along.square().mean(2).sqrt().clamp_min(1e-30)
    parts = length.T[..., None] * vectors / step.T[:, None]
    return parts, (step[..., None] * along).view(-1, *tangents.shape[1:])
