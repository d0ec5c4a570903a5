"""A network that works on patches: fewer positions, each of more channels."""

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class Patches(nn.Module):
    """x [n, c, h, w] → [n, out, h, w], by a network of [n, c·size², h/size, w/size] (arXiv 2207.04316).

    What else the network is told, by place or by name, it gets in third place.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor, noise_label: Tensor, *places: Tensor, **named: Tensor) -> Tensor:
        patches = self.network(pixel_unshuffle(x, self.size), noise_label, *places, *named.values())
        return pixel_shuffle(patches, self.size)
