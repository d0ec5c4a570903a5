"""Fitted and refined plans that ship beside the weights: `python -m calibration ship` makes them."""

from pathlib import Path

from edge_sampler.models.zoo import WEIGHTS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

SHIPPED = "shipped"  # in place of a plan's file name
PLANS = WEIGHTS / "plans"


def plan_file(model: str, nfe: int, folder: Path = PLANS) -> Path:
    return folder / f"{model}-nfe{nfe}.json"


def shipped_plan(model: str, nfe: int) -> Plan:
    """The refined plan that ships with a model.

    Args:
        model: a name that ``python -m models list`` shows.
        nfe: network evaluations.

    Returns:
        The plan, with its report.

    Raises:
        UserError: if none ships; the message names the NFE with a shipped plan.

    Examples:
        >>> from edge_sampler.models.shipped import shipped_plan
        >>> shipped_plan("edm-digits", 5).nfe
        5
    """
    path = plan_file(model, nfe)
    if path.is_file():
        return Plan.load(path)
    prefix = plan_file(model, 0).stem.removesuffix("0")
    numbers = sorted(int(one.stem.removeprefix(prefix)) for one in PLANS.glob(f"{prefix}*.json"))
    there = f"its plans are of NFE {', '.join(map(str, numbers))}" if numbers else "it has none"
    raise UserError(f"no plan of {nfe} evaluations ships with {model}; {there}: fit one, with --nfe {nfe} alone")
