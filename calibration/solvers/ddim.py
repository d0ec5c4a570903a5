"""DDIM (Song et al., arXiv 2010.02502, eq. 13), which in σ is Euler's method, and IIA-DDIM (arXiv 2304.11328)."""

from collections.abc import Sequence
from typing import Any

from edge_sampler.calibration.solvers.base import Evaluation, Solver, multistep


def ddim(past: list[Evaluation], sigma_next: float) -> Any:
    """x + (σ' - σ)·d."""
    now = past[0]
    return now.x + (sigma_next - now.sigma) * now.d


def clipping(bound: float) -> Solver:
    """DDIM of diffusers with ``clip_sample``, as policies use it: D within ±bound, plus σ'·d.

    d, the noise estimate, is that of the answer as it was.
    """

    def clipped(now: Evaluation) -> Any:
        return now.denoised.clip(-bound, bound)

    def rule(past: list[Evaluation], sigma_next: float) -> Any:
        return clipped(past[0]) + sigma_next * past[0].d

    return Solver("ddim-clip", multistep(rule, last=clipped), order=1, clip=bound)


def noise_estimate(past: Sequence[Evaluation], history: int) -> list[Any]:
    """ε̂ of this step alone: the direction of the paper's form for classifier-free guidance, DDIM + β·ε̂."""
    return [past[0].d]


SOLVERS = (
    Solver("ddim", multistep(ddim), order=1, aliases=("euler",)),
    clipping(1.0),  # diffusers' clip_sample_range, unless told
    Solver("iia-ddim", multistep(ddim), order=1, history=1),
    Solver("iia-ddim-guided", multistep(ddim, noise_estimate), order=1, history=0),
)
