"""A robot policy: an observation in, a chunk of actions out.

    python -m export --model examples/policy.py:make --nfe 4 --out policy
    python -m runtime compare policy
    python -m runtime sample policy --seeds 0-7 --condition observation=0,0,1,0 --out actions.npz
    python -m export engine policy --engine tensorrt-rtx --target sm89 --precision fp16

A point goes from a start to a goal, round an obstacle that stands halfway, on the left or on the right: a task with two
right answers, whose mean is wrong. The network learns it in half a minute, by flow matching (arXiv 2209.03003).
"""

import math

import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import Condition, Decoder, Encoder, Output

STEPS, DIMS, OBSERVED, WIDTH = 16, 2, 4, 64  # actions in a chunk; x and y; start and goal; the network's features
METRES = 0.25  # standard deviation of a waypoint, which the network sees as 1


def expert(observation: Tensor, generator: torch.Generator) -> Tensor:
    """Waypoints [n, 16, 2] in metres from start to goal, observation [n, 4], passing halfway on either side."""
    start, goal = observation[:, None, :2], observation[:, None, 2:]
    time = torch.linspace(0, 1, STEPS)[None, :, None]
    side = torch.randint(0, 2, (len(observation), 1, 1), generator=generator) * 2.0 - 1
    across = torch.stack([start[..., 1] - goal[..., 1], goal[..., 0] - start[..., 0]], -1)
    return start + time * (goal - start) + 0.4 * side * (math.pi * time).sin() * across


def observations(count: int, generator: torch.Generator) -> Tensor:
    """Start and goal [n, 4] in metres."""
    return torch.rand(count, OBSERVED, generator=generator) * 2 - 1


class Features(nn.Module):
    """The stage before the loop: an observation [n, 4] → features [n, 64]."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(OBSERVED, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))

    def forward(self, observation: Tensor) -> tuple[Tensor]:
        return (self.layers(observation),)


class Velocity(nn.Module):
    """The network in the loop: x [n, 16, 2], t [n or 1], features [n, 64] → noise - actions, shaped as x."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.first = nn.Conv1d(DIMS, WIDTH, 5, padding=2)
        self.blocks = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2) for _ in range(3))
        self.films = nn.ModuleList(nn.Linear(2 * WIDTH, 2 * WIDTH) for _ in range(3))
        self.last = nn.Conv1d(WIDTH, DIMS, 1)

    def forward(self, x: Tensor, t: Tensor, features: Tensor) -> Tensor:
        angles = t[:, None] * 2.0 ** torch.arange(4, device=t.device)
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1)).expand(x.shape[0], WIDTH)
        told = torch.cat([time, features.expand(x.shape[0], WIDTH)], -1)
        hidden = self.first(x.movedim(1, 2))
        for convolution, film in zip(self.blocks, self.films, strict=True):
            scale, shift = film(told)[..., None].chunk(2, 1)
            hidden = hidden + convolution(nn.functional.silu(hidden * (1 + scale) + shift))
        return self.last(hidden).movedim(1, 2)


class Metres(nn.Module):
    """The stage behind the loop: what the network sees → metres."""

    def forward(self, x: Tensor) -> Tensor:
        return x * METRES


def train(features: nn.Module, velocity: nn.Module, iterations: int = 1500, batch: int = 256) -> None:
    """Flow matching: between an action and noise, in the direction from the one to the other."""
    generator = torch.Generator().manual_seed(0)
    weights = [*features.parameters(), *velocity.parameters()]
    optimiser = torch.optim.AdamW(weights, 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations)
    for _ in range(iterations):
        observed = observations(batch, generator)
        actions = expert(observed, generator) / METRES
        noise, t = torch.randn(actions.shape, generator=generator), torch.rand(batch, generator=generator)
        x = torch.lerp(actions, noise, t[:, None, None])
        loss = (velocity(x, t, *features(observed)) - (noise - actions)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def make(iterations: int = 1500) -> edge_sampler.Denoiser:
    """The trained policy, with its stages and examples of observations."""
    torch.manual_seed(0)
    features, velocity = Features(), Velocity()
    train(features, velocity, iterations)
    return edge_sampler.adapt(
        velocity,
        (STEPS, DIMS),
        "FlowPrecond",
        num_train_timesteps=1,
        conditions={"features": Condition((WIDTH,), description="of the observation")},
        encoder=Encoder(
            features, {"observation": Condition((OBSERVED,), description="start and goal, m")}, ("features",)
        ),
        decoder=Decoder(Metres(), Output("actions", (STEPS, DIMS), "m")),
        examples={"observation": observations(256, torch.Generator().manual_seed(1)).numpy()},
        licence="Apache-2.0",
    )
