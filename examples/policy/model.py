"""A Diffusion Policy for the task beside it: an observation in, a chunk of actions out. It learns in some minutes.

    python -m export --model examples/policy/model.py:make --nfe 4 --out policy
    python -m runtime compare policy
    python examples/policy/control.py policy                  # in the control loop, without PyTorch
    python -m runtime sample policy --seeds 0-7 --condition observation=-1,0,-1,0,1,0,0,0 --out actions.npz
    python -m export engine policy --engine tensorrt-rtx --target sm89 --precision fp16

It has the form of lerobot's policy of that name (arXiv 2303.04137): the noise is predicted, in 100 steps of a cosine
schedule, by convolutions over the chunk's time that features of the observation scale and shift.
"""

import numpy as np
import torch
from task import CHUNK, OBSERVED, demonstrations
from torch import Tensor, nn

import edge_sampler
from edge_sampler import Condition, Decoder, Encoder, Output
from edge_sampler.models.precond import cosine_betas, discrete_sigmas

STEPS, DIMS, WIDTH = 100, 2, 64  # of training; x and y; the network's features
LEVELS = discrete_sigmas(cosine_betas(STEPS))  # the noise level of each step
METRES = 1.25  # the network sees this as 1


class Features(nn.Module):
    """The stage before the loop: an observation [n, 8] in metres → features [n, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(OBSERVED, 4 * WIDTH),
            nn.SiLU(),
            nn.Linear(4 * WIDTH, 4 * WIDTH),
            nn.SiLU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, observation: Tensor) -> tuple[Tensor]:
        return (self.layers(observation),)


class Noise(nn.Module):
    """The network in the loop: x [n, 16, 2], its step t [n or 1], features [n, 64] → the noise in x, shaped as x."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.first = nn.Conv1d(DIMS, WIDTH, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(4))
        self.norms = nn.ModuleList(nn.GroupNorm(8, WIDTH) for _ in range(4))
        self.films = nn.ModuleList(nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(4))
        self.last = nn.Conv1d(WIDTH, DIMS, 1)

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        angles = t[:, None] * 0.4 ** torch.arange(8, device=t.device)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1)).expand(x.shape[0], WIDTH)
        told = nn.functional.silu(torch.cat([time, features.expand(x.shape[0], WIDTH)], -1))
        hidden = self.first(x.movedim(1, 2))
        for convolution, norm, film in zip(self.blocks, self.norms, self.films, strict=True):
            scale, shift = film(told)[..., None].chunk(2, 1)
            hidden = hidden + convolution(nn.functional.silu(norm(hidden) * (1 + scale) + shift))
        return self.last(hidden).movedim(1, 2)


class Metres(nn.Module):
    """The stage behind the loop: what the network sees → metres."""

    def forward(self, x: Tensor) -> Tensor:
        return x * METRES


def trained(iterations: int, batch: int = 256) -> tuple[Features, Noise]:
    """By DDPM's loss: the noise that was mixed into an action."""
    torch.manual_seed(0)
    features, noise = Features(), Noise()
    generator = torch.Generator().manual_seed(0)
    observed, actions = map(torch.from_numpy, demonstrations(1000, np.random.default_rng(0)))
    kept = torch.from_numpy((1 / (1 + LEVELS**2)).astype(np.float32))
    optimiser = torch.optim.AdamW([*features.parameters(), *noise.parameters()], 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=iterations)
    for _ in range(iterations):
        rows = torch.randint(len(observed), (batch,), generator=generator)
        t = torch.randint(STEPS, (batch,), generator=generator)
        mixed = torch.randn((batch, CHUNK, DIMS), generator=generator)
        share = kept[t][:, None, None]
        x = share.sqrt() * actions[rows] / METRES + (1 - share).sqrt() * mixed
        loss = (noise(x, t.float(), *features(observed[rows])) - mixed).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return features, noise


def make(iterations: int = 4000) -> edge_sampler.Denoiser:
    """The trained policy, from where DDIM of ten steps starts: the last of the hundred are at up to σ = 2029."""
    return policy(*trained(iterations), sigma_max=float(LEVELS[90]))


def policy(features: Features, noise: Noise, sigma_max: float) -> edge_sampler.Denoiser:
    """With its stages and examples of observations."""
    observed, _ = demonstrations(50, np.random.default_rng(1))
    return edge_sampler.adapt(
        noise,
        (CHUNK, DIMS),
        "DDPMPrecond",
        beta_schedule="squaredcos_cap_v2",
        num_train_timesteps=STEPS,
        sigma_max=sigma_max,
        conditions={"features": Condition((WIDTH,), description="of the observation")},
        encoder=Encoder(
            features,
            {"observation": Condition((OBSERVED,), description="position before and now, goal, obstacle; m")},
            ("features",),
        ),
        decoder=Decoder(Metres(), Output("actions", (CHUNK, DIMS), "m")),
        examples={"observation": np.random.default_rng(2).permutation(observed)[:512]},
        licence="Apache-2.0",
    )
