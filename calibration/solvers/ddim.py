"""DDIM (Song et al., arXiv 2010.02502, eq. 13), which in σ is Euler's method, and IIA-DDIM (arXiv 2304.11328)."""

from typing import Any

from calibration.solvers.base import Evaluation, Solver, multistep


def ddim(past: list[Evaluation], sigma_next: float) -> Any:
    """x + (σ' - σ)·d."""
    now = past[0]
    return now.x + (sigma_next - now.sigma) * now.d


SOLVERS = (
    Solver("ddim", multistep(ddim), order=1, aliases=("euler",)),
    Solver("iia-ddim", multistep(ddim), order=1, history=1),
)
