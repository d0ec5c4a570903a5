"""A denoiser around another: guidance, conditions that are built in, known entries."""

from dataclasses import replace
from typing import Any

from torch import nn

from edge_sampler.models.denoiser import Denoiser, Levels
from edge_sampler.models.examples import Examples


class Wrapped(Denoiser):
    """A denoiser around another, with its stages and examples."""

    def __init__(self, model: Denoiser, **changes: Any) -> None:
        nn.Module.__init__(self)  # the stages are the model's
        self.model = model
        self.spec = replace(model.spec, **changes)

    @property
    def encoder(self) -> nn.Module | None:  # type: ignore[override]
        return self.model.encoder

    @property
    def decoder(self) -> nn.Module | None:  # type: ignore[override]
        return self.model.decoder

    @property
    def examples(self) -> Examples:
        return self.model.examples

    @examples.setter
    def examples(self, examples: Examples) -> None:
        self.model.examples = examples

    @property
    def own_levels(self) -> Levels | None:  # type: ignore[override]
        return self.model.own_levels
