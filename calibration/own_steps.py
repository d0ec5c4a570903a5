"""DDIM as diffusers and lerobot run it on a network of discrete steps, to compare fitted samplers with."""

from dataclasses import replace

import numpy as np

from edge_sampler.calibration.solvers import find
from edge_sampler.calibration.solvers.base import Scheme
from edge_sampler.calibration.solvers.ddim import clipping
from edge_sampler.calibration.trace import trace
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan


def library_ddim(sigmas: np.ndarray, nfe: int, clip: float = 0.0) -> Plan:
    """The plan of DDIMScheduler with its default ("leading") spacing.

    Its steps are 0, T//nfe, 2·T//nfe, … It starts from unit noise, and takes that for noisy data at the highest step.
    Only at the last step of training are these the same. So the data's own share is missing.

    Args:
        sigmas: [T], the noise level of each step of training, rising (``precond.discrete_sigmas``).
        nfe: network evaluations, 1 to T.
        clip: ``clip_sample_range``; 0: no ``clip_sample``.

    Returns:
        The plan, without a report.

    Raises:
        UserError: if nfe is out of range.

    Examples:
        >>> from edge_sampler.calibration.own_steps import library_ddim
        >>> [round(sigma, 2) for sigma in library_ddim(np.array([0.1, 0.5, 1.0, 2.0]), nfe=2).sigmas]
        [1.0, 0.1]
    """
    if not 1 <= nfe <= len(sigmas):
        raise UserError(f"nfe is {nfe}; a network of {len(sigmas)} steps takes 1 to {len(sigmas)}")
    levels = [float(sigmas[step]) for step in reversed(range(0, nfe * (len(sigmas) // nfe), len(sigmas) // nfe))]
    plan = trace(Scheme(clipping(clip) if clip else find("ddim"), [*levels, 0.0], nfe))
    unit = float(np.hypot(1, levels[0])) / levels[0]  # √(1 + σ²) times what the network sees is the state
    return replace(plan, table=tuple((row[0] * unit, *row[1:]) for row in plan.table))
