"""Preconditionings: what a raw network F predicts, at which scale it sees its input, and what it is told of the noise.

Each turns F into a denoiser, D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise): arXiv 2206.00364, eq. 7. x is clean images
with noise of standard deviation σ, always; that a process shrinks them is in c_in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Coefficients:
    """The four factors of arXiv 2206.00364, eq. 7, each [n or 1] or a plain number.

    Args:
        c_skip: of x in the answer.
        c_out: of the network's output in the answer.
        c_in: of x in the network's input.
        c_noise: the noise level in the network's own terms.

    Examples:
        >>> from edge_sampler.models.precond import denoised
        >>> denoised().coefficients(torch.tensor([2.0])).c_noise
        tensor([2.])
    """

    c_skip: Tensor | float
    c_out: Tensor | float
    c_in: Tensor | float
    c_noise: Tensor


@dataclass(frozen=True)
class Preconditioning:
    """How a network is used.

    Args:
        coefficients: of sigma [n or 1].
        sigma_limits: the noise levels that the network knows.
        sampled: the noise levels to sample between, as far as the network knows them.
        schedule: the noise levels that suit it, by their name in calibration.

    Examples:
        >>> from edge_sampler.models.precond import edm
        >>> edm().sigma_range
        (0.002, 80.0)
    """

    coefficients: Callable[[Tensor], Coefficients]
    sigma_limits: tuple[float, float]
    sampled: tuple[float, float] = (0.002, 80.0)  # arXiv 2206.00364, Table 1
    schedule: str = "edm"

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest noise level that a sampler visits."""
        return max(self.sampled[0], self.sigma_limits[0]), min(self.sampled[1], self.sigma_limits[1])


def denoised() -> Preconditioning:
    """``precond="Denoised"``: the network predicts the clean data, and takes σ.

    Returns:
        The preconditioning.

    Examples:
        >>> edge_sampler.adapt(Shrink(), (1, 8, 8), precond="Denoised").spec.sigma_max
        80.0
    """
    return Preconditioning(lambda sigma: Coefficients(0.0, 1.0, 1.0, sigma), (0.0, math.inf))


def edm(sigma_data: float = 0.5) -> Preconditioning:
    """``precond="EDMPrecond"`` (arXiv 2206.00364, Table 1): the network takes ln(σ)/4.

    Args:
        sigma_data: the data's standard deviation.

    Returns:
        The preconditioning.

    Examples:
        >>> edge_sampler.adapt(Shrink(), (1, 8, 8), precond="EDMPrecond", sigma_data=1.0).spec.schedule
        'edm'
    """

    def coefficients(sigma: Tensor) -> Coefficients:
        variance = sigma**2 + sigma_data**2
        scale = variance.rsqrt()
        return Coefficients(sigma_data**2 / variance, sigma * sigma_data * scale, scale, sigma.log() / 4)

    return Preconditioning(coefficients, (0.0, math.inf))


VP_BETA_D, VP_BETA_MIN = 19.9, 0.1


def vp_sigma(time: float, beta_d: float = VP_BETA_D, beta_min: float = VP_BETA_MIN) -> float:
    """σ at a time of the variance-preserving process (arXiv 2011.13456, eq. 32)."""
    return math.sqrt(math.expm1(beta_d * time**2 / 2 + beta_min * time))


def vp(
    beta_d: float = VP_BETA_D,
    beta_min: float = VP_BETA_MIN,
    M: int = 1000,  # noqa: N803 (the checkpoints' name)
    epsilon_t: float = 1e-5,
) -> Preconditioning:
    """``precond="VPPrecond"`` (arXiv 2206.00364, Table 1): the network predicts the noise, and takes (M - 1)·t.

    Args:
        beta_d: β_max - β_min.
        beta_min: β_min.
        M: steps of training.
        epsilon_t: the least t, time of the variance-preserving process (arXiv 2011.13456, eq. 32).

    Returns:
        The preconditioning.

    Examples:
        >>> round(edge_sampler.adapt(Shrink(), (1, 8, 8), precond="VPPrecond").spec.sigma_min, 6)
        0.002
    """

    def coefficients(sigma: Tensor) -> Coefficients:
        log_variance = (1 + sigma**2).log()
        time = ((beta_min**2 + 2 * beta_d * log_variance).sqrt() - beta_min) / beta_d
        return Coefficients(1.0, -sigma, (1 + sigma**2).rsqrt(), (M - 1) * time)

    return Preconditioning(coefficients, (vp_sigma(epsilon_t, beta_d, beta_min), vp_sigma(1.0, beta_d, beta_min)))


def ve() -> Preconditioning:
    """``precond="VEPrecond"`` (arXiv 2206.00364, Table 1): the network predicts -noise, and takes ln(σ/2).

    Returns:
        The preconditioning.

    Examples:
        >>> edge_sampler.adapt(Shrink(), (1, 8, 8), precond="VEPrecond").spec.sigma_min
        0.02
    """
    return Preconditioning(lambda sigma: Coefficients(1.0, sigma, 1.0, (sigma / 2).log()), (0.02, 100.0))


BETA_SCHEDULES: dict[str, Callable[[float, float, int], np.ndarray]] = {  # the names are those of diffusers
    "linear": np.linspace,  # arXiv 2006.11239
    "scaled_linear": lambda start, end, steps: np.linspace(start**0.5, end**0.5, steps) ** 2,  # 2112.10752
    "squaredcos_cap_v2": lambda start, end, steps: cosine_betas(steps),  # 2102.09672
}
PREDICTIONS: dict[str, Callable[[Tensor], tuple[Tensor | float, Tensor | float]]] = {  # c_skip and c_out of sigma
    "epsilon": lambda sigma: (1.0, -sigma),
    "v_prediction": lambda sigma: (1 / (1 + sigma**2), -sigma * (1 + sigma**2).rsqrt()),  # arXiv 2202.00512
    "sample": lambda sigma: (0.0, 1.0),
}


def cosine_betas(steps: int, shift: float = 0.008, least_ratio: float = 0.001) -> np.ndarray:
    """Improved DDPM's (arXiv 2102.09672, eq. 17): ᾱ falls as a cosine, but never below ``least_ratio`` of the last."""
    level = np.cos((np.arange(steps + 1) / steps + shift) / (1 + shift) * np.pi / 2) ** 2
    return 1 - np.maximum(level[1:] / level[:-1], least_ratio)


def discrete_sigmas(betas: np.ndarray) -> np.ndarray:
    """√((1 - ᾱ_t)/ᾱ_t) of each discrete step t, as far as it is finite."""
    kept = np.cumprod(1 - betas)
    return np.sqrt(1 / kept[kept > np.finfo(float).tiny] - 1)


DDPM_SIGMAS = discrete_sigmas(BETA_SCHEDULES["linear"](1e-4, 0.02, 1000))  # of arXiv 2006.11239


def ddpm(
    beta_schedule: str = "linear",
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    num_train_timesteps: int = 1000,
    prediction_type: str = "epsilon",
    rescale_timesteps: bool = False,
) -> Preconditioning:
    """``precond="DDPMPrecond"`` (arXiv 2006.11239): the network takes a step's number, also between two (in ln σ).

    Args:
        beta_schedule: "linear", "scaled_linear" (arXiv 2112.10752) or "squaredcos_cap_v2" (2102.09672, eq. 17).
        beta_start: the first step's β; the cosine does not use it.
        beta_end: the last step's.
        num_train_timesteps: steps of training.
        prediction_type: "epsilon", the noise; "sample", the clean data; or "v_prediction" (arXiv 2202.00512).
        rescale_timesteps: whether the network takes its step as one of a thousand; it is OpenAI's, the others are those
            of diffusers' schedulers.

    Returns:
        The preconditioning.

    Raises:
        ValueError: for an unknown schedule or prediction; ``adapt`` makes a UserError of it.

    Examples:
        >>> cosine = edge_sampler.adapt(Shrink(), (1, 8, 8), precond="DDPMPrecond", beta_schedule="squaredcos_cap_v2")
        >>> cosine.spec.sigma_min < 0.01
        True
    """
    for argument, value, known in (
        ("beta_schedule", beta_schedule, BETA_SCHEDULES),
        ("prediction_type", prediction_type, PREDICTIONS),
    ):
        if value not in known:
            raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(known)}")
    betas = BETA_SCHEDULES[beta_schedule](beta_start, beta_end, num_train_timesteps)
    known_levels = discrete(betas, prediction_type, 1000 / num_train_timesteps if rescale_timesteps else 1.0)
    # From its own highest level, as its own samplers do; but a cosine's last steps only go on where all is noise.
    return replace(known_levels, sampled=(0.0, float(DDPM_SIGMAS[-1])))


def iddpm(C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> Preconditioning:  # noqa: N803
    """``precond="iDDPMPrecond"`` (arXiv 2206.00364, Table 1): cosine steps (2102.09672, eq. 17), the noise predicted.

    Args:
        C_1: the least ratio of two steps' ᾱ.
        C_2: the cosine's shift.
        M: steps of training.

    Returns:
        The preconditioning.

    Examples:
        >>> edge_sampler.adapt(Shrink(), (1, 8, 8), precond="iDDPMPrecond").spec.sigma_max
        80.0
    """
    return discrete(cosine_betas(M, C_2, C_1), "epsilon")


def discrete(betas: np.ndarray, prediction_type: str, told: float = 1.0) -> Preconditioning:
    """A network of so many discrete steps, which is told ``told`` times its step."""
    sigmas = discrete_sigmas(betas)

    def coefficients(sigma: Tensor) -> Coefficients:
        known = torch.tensor(np.log(sigmas), dtype=sigma.dtype, device=sigma.device)
        level = sigma.log()
        below = ((level[:, None] >= known).sum(dim=1) - 1).clamp(0, len(known) - 2)
        between = (level - known[below]) / (known[below + 1] - known[below])
        step = below + between.clamp(0, 1)
        step = torch.where((step - step.round()).abs() < 1e-3, step.round(), step)  # a network may look it up
        return Coefficients(*PREDICTIONS[prediction_type](sigma), (1 + sigma**2).rsqrt(), step * told)

    return Preconditioning(coefficients, (float(sigmas[0]), float(sigmas[-1])))


FLOW_START = 1e7  # σ of t = 1 - 1e-7; from there the first state is the noise, in float32


def flow(
    num_train_timesteps: float = 1000.0, reversed_time: bool = False, predicts: str = "noise-data"
) -> Preconditioning:
    """``precond="FlowPrecond"`` (rectified flow, arXiv 2209.03003): x_t = (1 - t)·data + t·noise.

    σ = t/(1 - t), so that x_t = x/(1 + σ). Sampling starts at t = 1, that is at a very high σ.

    Args:
        num_train_timesteps: the factor of t in the network's input; 1 for a network that takes t.
        reversed_time: whether it counts time the other way, and takes that factor times 1 - t.
        predicts: "noise-data", or "data-noise".

    Returns:
        The preconditioning.

    Raises:
        ValueError: for another direction; ``adapt`` makes a UserError of it.

    Examples:
        >>> flow = edge_sampler.adapt(Shrink(), (1, 8, 8), precond="FlowPrecond", num_train_timesteps=1)
        >>> flow.spec.sigma_max, flow.spec.schedule
        (10000000.0, 'flow')
    """
    signs = {"noise-data": -1.0, "data-noise": 1.0}
    if predicts not in signs:
        raise ValueError(f"predicts is {predicts!r}; allowed: {', '.join(signs)}")

    def coefficients(sigma: Tensor) -> Coefficients:
        shrink = 1 / (1 + sigma)
        time = shrink if reversed_time else sigma * shrink
        return Coefficients(shrink, signs[predicts] * sigma * shrink, shrink, num_train_timesteps * time)

    return Preconditioning(coefficients, (0.0, math.inf), (0.002, FLOW_START), "flow")


PRECONDITIONINGS: dict[str, Callable[..., Preconditioning]] = {  # the names of EDM's checkpoints where they have one
    "EDMPrecond": edm,
    "VPPrecond": vp,
    "VEPrecond": ve,
    "iDDPMPrecond": iddpm,
    "DDPMPrecond": ddpm,
    "FlowPrecond": flow,
    "Denoised": denoised,
}
