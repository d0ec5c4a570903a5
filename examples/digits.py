"""A flow of handwritten digits, 8×8 pixels, made in a second: its hidden layers are random, the last one is solved for.

    python -m export --model examples/digits.py:make --nfe 5 --out digits
    python -m runtime sample digits --out digits.png

There is no training, and the digits are vague. The network is a plain PyTorch module, as one that was trained would be.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import silu

import edge_sampler

PIXELS, TIME, WIDTH, WIDER = 64, 8, 512, 1024
RIDGE = 0.1  # added to sums of squares over 7,188 images


class Flow(nn.Module):
    """x [n, 1, 8, 8] at the times t [n or 1], from 0 for data to 1 for noise → noise - data, as x."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (
            nn.Linear(PIXELS + TIME, WIDTH),
            nn.Linear(WIDTH, WIDER),
            nn.Linear(WIDER, PIXELS),
        )
        nn.init.normal_(self.first.weight, std=0.35)
        nn.init.normal_(self.inner.weight, std=2 / WIDTH**0.5)

    def features(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * 2.0 ** torch.arange(TIME // 2, device=t.device)
        time = torch.cat([angles.sin(), angles.cos()], 1).expand(x.shape[0], TIME)
        return silu(self.inner(silu(self.first(torch.cat([x.flatten(1), time], 1)))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.features(x, t)).reshape(x.shape)


@torch.no_grad()
def solve(network: Flow, data: Tensor) -> None:
    """The last layer, by ridge regression: of the flow from each of ``data`` [n, 1, 8, 8] to a noise, at some time."""
    noise, t = torch.randn_like(data), torch.rand(len(data))
    share = t[:, None, None, None]
    known = network.features((1 - share) * data + share * noise, t).double()
    wanted = (noise - data).flatten(1).double()
    mean, aim = known.mean(0), wanted.mean(0)
    known, wanted = known - mean, wanted - aim
    weight = torch.linalg.solve(known.T @ known + RIDGE * torch.eye(WIDER), known.T @ wanted)
    network.last.weight.copy_(weight.T)
    network.last.bias.copy_(aim - mean @ weight)


def make() -> edge_sampler.Denoiser:
    torch.manual_seed(0)
    network, images = Flow(), torch.tensor(load_digits().images, dtype=torch.float32)
    solve(network, (images[:, None] / 8 - 1).repeat(4, 1, 1, 1))
    return edge_sampler.adapt(network, (1, 8, 8), "FlowPrecond", num_train_timesteps=1, licence="Apache-2.0")
