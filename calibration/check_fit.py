"""Whether a plan and a model go together."""

import numpy as np

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.unchanged import check_unchanged
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import Plan, mean_shapes


def check_fit(model: Denoiser, plan: Plan) -> None:
    """Raises UserError where the plan was fitted to another model, or its mean is of other data."""
    check_unchanged(model)
    spec, report = model.spec, plan.report
    if report and report.fingerprint != spec.fingerprint:
        raise UserError(
            f"the plan was fitted to {report.model}, fingerprint {report.fingerprint[:12]}, and this is {spec.title}, "
            f"fingerprint {spec.fingerprint[:12]}: fit it again"
        )
    if plan.afs and spec.varies:
        raise UserError(
            f"the plan has a mean of {np.shape(plan.mean)}, and {spec.title} takes data of several sizes: fit it again"
        )
    if plan.afs and np.shape(plan.mean) not in mean_shapes(spec.inputs):
        raise UserError(f"the plan has a mean of {np.shape(plan.mean)} for data of {spec.shape}: fit it again")
    if max(plan.sigmas) > spec.sigma_max * 1.001 or (not report and min(plan.sigmas) < spec.sigma_min * 0.999):
        raise UserError(
            f"the plan's noise levels, {max(plan.sigmas):.4g} to {min(plan.sigmas):.4g}, leave those of {spec.title}, "
            f"{spec.sigma_max:.4g} to {spec.sigma_min:.4g}: fit it again"
        )
