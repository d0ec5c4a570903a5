"""Fitted and refined plans that ship beside the weights: `python -m calibration ship` makes them."""

import re
from pathlib import Path

from edge_sampler.models.zoo import WEIGHTS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

SHIPPED = "shipped"  # in place of a plan's file name
PLANS = WEIGHTS / "plans"


def plan_file(model: str, nfe: int, guidance: float = 1.0, folder: Path = PLANS) -> Path:
    guided = f"-guidance{guidance:g}" if guidance != 1 else ""
    return folder / f"{model}{guided}-nfe{nfe}.json"


def shipped_plan(model: str, nfe: int, guidance: float = 1.0) -> Plan:
    """The refined plan that ships with a model.

    Args:
        model: a name that ``python -m models list`` shows.
        nfe: network evaluations.
        guidance: the factor of classifier-free guidance; 1 is none.

    Returns:
        The plan, with its report.

    Raises:
        UserError: if none ships; the message names what ships with the model.

    Examples:
        >>> from edge_sampler.models.shipped import shipped_plan
        >>> shipped_plan("edm-digits", 5).nfe
        5
    """
    path = plan_file(model, nfe, guidance)
    if path.is_file():
        return Plan.load(path)
    name = re.compile(rf"{re.escape(model)}(?:-guidance(.+))?-nfe(\d+)")
    numbers = dict[float, list[int]]()
    for found in filter(None, (name.fullmatch(one.stem) for one in PLANS.glob("*.json"))):
        numbers.setdefault(float(found[1] or 1), []).append(int(found[2]))
    kinds = [f"NFE {', '.join(map(str, sorted(of)))}{_with(scale)}" for scale, of in sorted(numbers.items())]
    there = f"its plans are of {' and of '.join(kinds)}" if kinds else "it has none"
    raise UserError(
        f"no plan of {nfe} evaluations{_with(guidance)} ships with {model}; {there}: fit one, with --nfe {nfe} alone"
    )


def _with(guidance: float) -> str:
    return f" with guidance {guidance:g}" if guidance != 1 else ""
