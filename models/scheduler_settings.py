"""The supported schedulers of diffusers, and their settings: used, without effect here, or refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_sampler.runtime.errors import UserError

DISCRETE_SCHEDULERS = (  # whose steps are those of training, whatever solver they are
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
DISCRETE_ARGUMENTS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type")
FLOW_ARGUMENTS = ("num_train_timesteps",)
UNSUPPORTED = {  # settings that change what a network's answer means or how it is used, and their only supported value
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "invert_sigmas": False,
    "sigma_min": None,
    "sigma_max": None,
}
OF_SAMPLERS = (  # settings of their steps, which our solvers and schedules replace; --schedule own asks for them
    "algorithm_type", "base_image_seq_len", "base_shift", "clip_sample", "clip_sample_range", "disable_corrector",
    "dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type",
    "lambda_min_clipped", "lower_order_final", "max_image_seq_len", "max_shift", "original_inference_steps",
    "predict_x0", "sample_max_value", "set_alpha_to_one", "shift", "shift_terminal", "skip_prk_steps",
    "solver_order", "solver_p", "solver_type", "steps_offset", "stochastic_sampling", "time_shift_type",
    "timestep_scaling", "timestep_spacing", "use_beta_sigmas", "use_dynamic_shifting", "use_exponential_sigmas",
    "use_karras_sigmas", "use_lu_lambdas", "variance_type",
)  # fmt: skip


def check_scheduler(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError for a setting that would have to change something here, or that this version does not know."""
    for setting, value in config.items():
        if setting in UNSUPPORTED and value != UNSUPPORTED[setting]:
            raise UserError(f"{folder}: the scheduler's {setting} = {value!r} is not supported")
        known = (*UNSUPPORTED, *DISCRETE_ARGUMENTS, *FLOW_ARGUMENTS, *OF_SAMPLERS)
        if value and setting not in known and not setting.startswith("_"):
            raise UserError(f"{folder}: the scheduler's {setting} = {value!r} is not known to this version")
