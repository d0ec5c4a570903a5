"""Noises that fit, noises that are held out, and noises that judge, each with its values of the conditions."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.calibration.evaluate.distributed import BLOCK, share
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.noise import CALIBRATION_STREAM, unit_noise
from edge_sampler.runtime.plan import Plan, sample

CHECK_STREAM = 2  # of noises that judge; they are never sampled either
SEEDS = 2**20  # seeds of noises that belong to one --seed; the upper half is for noises that are held out


@dataclass(frozen=True)
class Noises:
    """Unit noise float64 [n, *shape] of these seeds, times the temperature, and the network that denoises it.

    The first ``fitting`` of them fit; the others are held out.
    """

    network: Network
    seeds: Sequence[int]
    stream: int
    noise: Tensor
    fitting: int = 0
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, rows: slice) -> "Noises":
        network, seeds, noise = self.network.part(rows), self.seeds[rows], self.noise[rows]
        return replace(self, network=network, seeds=seeds, noise=noise, fitting=0)

    def some(self, places: Sequence[int]) -> "Noises":
        """The noises at these places, none of them to fit on."""
        network = self.network.part(list(places))
        seeds, noise = [self.seeds[place] for place in places], self.noise[list(places)]
        return replace(self, network=network, seeds=seeds, noise=noise, fitting=0)

    def first(self, count: int) -> "Noises":
        """Those of the first ``count`` noises of all processes that this process has."""
        return self.part(slice(sum(seed % SEEDS < count for seed in self.seeds)))

    def over(self, evaluations: Sequence[Denoiser]) -> "Noises":
        """The same, denoised by ``evaluations`` in turn where a sampler runs."""
        return replace(self, network=replace(self.network, evaluations=tuple(evaluations)))

    @property
    def heldout(self) -> "Noises":
        return self.part(slice(self.fitting, None))

    def sample(self, plan: Plan) -> Tensor:
        """The plan's samples, float64 [n, *shape]."""
        made: Tensor = sample(self.network.in_turn(), self.noise, plan, self.network.labels)
        return made

    def blocks(self) -> Iterator[tuple[slice, "Noises"]]:
        """Blocks of noises, each with its rows: what is computed, stored and shared among processes at a time."""
        for start in range(0, len(self), BLOCK):
            rows = slice(start, min(start + BLOCK, len(self)))
            yield rows, self.part(rows)

    @property
    def key(self) -> dict[str, Any]:
        """What identifies these noises and the network's answers to them."""
        evaluations = [one.spec.fingerprint for one in self.network.evaluations]
        return {
            "model": self.network.model.spec.fingerprint,
            **({"evaluations": evaluations} if evaluations else {}),
            "conditions": {name: digest(value) for name, value in self.network.conditions.items()},
            "shape": list(self.noise.shape[1:]),
            "stream": self.stream,
            "seeds": list(self.seeds),
            "temperature": self.temperature,
        }


def to_fit(
    model: Denoiser, batch: int, heldout: int, seed: int, temperature: float = 1.0, drawn_by: Denoiser | None = None
) -> Noises:
    """This process's share of ``batch`` noises to fit on and of ``heldout`` more, times ``temperature``.

    ``drawn_by`` is whose examples the conditions are, where ``model`` has none, or others.
    """
    first = seed * SEEDS
    fitting = share(range(first, first + batch))
    kept = share(range(first + SEEDS // 2, first + SEEDS // 2 + heldout))
    return _noises(model, fitting, kept, CALIBRATION_STREAM, temperature, drawn_by)


def to_judge(model: Denoiser, count: int, temperature: float = 1.0, drawn_by: Denoiser | None = None) -> Noises:
    """This process's share of ``count`` noises that no fit sees; the others as in ``to_fit``."""
    return _noises(model, [], share(range(count)), CHECK_STREAM, temperature, drawn_by)


def _noises(
    model: Denoiser,
    fitting: Sequence[int],
    heldout: Sequence[int],
    stream: int,
    temperature: float = 1.0,
    drawn_by: Denoiser | None = None,
) -> Noises:
    """Conditions are drawn by seed too, so that a sample is the same in any set; held-out ones are other examples."""
    asked = ((fitting, False), (heldout, True))
    drawn = [(drawn_by or model).draw_raw(seeds, stream, held) for seeds, held in asked if len(seeds)]
    seeds = [*fitting, *heldout]
    raw = {name: np.concatenate([values[name] for values in drawn]) for name in drawn[0]}
    checked, sizes = model.spec.called_with.check(raw, len(seeds))
    noise = torch.from_numpy(unit_noise(seeds, model.spec.inputs.sized(sizes=sizes), stream)).double().to(model.device)
    network = Network(model, model.encode(checked))
    return Noises(network, seeds, stream, temperature * noise, len(fitting), temperature)


def digest(values: Tensor) -> str:
    """A hash that stands for ``values`` [n, …] in a key."""
    return hashlib.sha256(values.cpu().numpy().tobytes()).hexdigest()
