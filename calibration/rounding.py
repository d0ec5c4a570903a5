"""What rounding costs a plan, and which plans float32 can compute.

Two ways to compute a network, such as PyTorch's and a graph's, differ by some roundings of float32. A plan multiplies
that by its weights. These are large where answers hardly differ from each other, as those of straight flows: a fit then
weighs their differences.
"""

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan

ROUNDED = 1e-6  # of answers of about 1, by which two ways to compute them differ
NOTHING = 1e-5  # no fit errs by less that anyone would see
LARGEST_WEIGHT = 1e5  # of an answer; what rounding then costs, 0.1, is more than any plan may err


def rounding_error(plan: Plan) -> float:
    """About how far two ways to compute the plan differ, RMS, in the data's units."""
    return ROUNDED * largest_weight(plan)


def largest_weight(plan: Plan) -> float:
    """Of the network's answers."""
    return max(abs(weight) for row in plan.table for weight in row[1:] or (0.0,))


def usable(plan: Plan) -> Plan:
    """The plan. Raises UserError where it weighs answers by so much that float32 loses what they say.

    So do solvers that average two slopes over a step from a flow's first level, σ = 1e7, to one of a few.
    """
    if (largest := largest_weight(plan)) > LARGEST_WEIGHT:
        raise UserError(
            f"{plan.solver} weighs the network's answers by up to {largest:.1e} on noise levels from "
            f"{max(plan.sigmas):.3g}, which float32 cannot hold: take another solver, such as ipndm, or --schedule edm "
            "and a lower highest level"
        )
    return plan
