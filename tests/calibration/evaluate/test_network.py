"""How many samples go into one call of a network, and where the states of a fine solution are held."""

from collections import ChainMap
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sampler import models
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.network import CHUNK_BYTES, LARGE, SCRATCH, Live, Network
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.reference import solution
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.settings import Settings
from edge_sampler.models.denoiser import Denoiser


class Widening(nn.Module):
    """Makes 100 numbers of each; notes how many samples it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(100))
        self.called: list[int] = []
        self.sample_bytes = 0  # outside of PyTorch

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        self.called.append(len(x))
        return (x[..., None] * self.weight).sum(-1) + 0 * noise.view(-1, 1)


def test_live_counts_what_is_there_at_once_and_no_weights() -> None:
    weight, x = torch.ones(1000, 1000), torch.ones(1, 1000)
    with Live() as live:
        made = weight.t()  # a view of the weight
        for _ in range(5):
            made = x * 2  # one after the other: the last and the new one are alive
    assert live.peak == 2 * made.nbytes
    assert live.now == made.nbytes


def test_what_takes_an_inputs_place_in_memory_counts() -> None:
    """A storage may have the address of one that is gone; then what a chunk may take would hang on chance."""
    given = [torch.zeros(1000) for _ in range(50)]
    with Live() as live:
        while given:
            given.pop().add_(1)
        made = [torch.ones(1000) for _ in range(50)]
    assert live.peak == sum(one.nbytes for one in made)


def test_chunks_are_as_large_as_memory_allows() -> None:
    widening = Widening()
    model, x = models.adapt(widening, (10,)), torch.randn(12, 10, generator=torch.Generator().manual_seed(0)).double()
    whole = Network(model)
    expected = whole(x, 1.0)
    assert SCRATCH * 4 * 1000 <= whole.meter.sample_bytes < 3 * SCRATCH * 4 * 1000
    assert whole.meter.evaluations == 12
    widening.called.clear()
    widening.sample_bytes = CHUNK_BYTES // 5 - whole.meter.sample_bytes
    few = Network(model)
    torch.testing.assert_close(few(x, 1.0), expected)
    assert widening.called == [1, 5, 5, 2]
    assert few.meter.evaluations == 12


@pytest.mark.parametrize("large", [False, True])
def test_memory_goes_back_after_a_large_call(large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """glibc's heap grew by half in an hour of a network of 256×256 pixels."""
    given: list[object] = []
    monkeypatch.setattr("edge_sampler.calibration.evaluate.network.give_back_memory", lambda: given.append(1))
    network = Network(models.adapt(Widening(), (10,)))
    network.meter.sample_bytes = LARGE // 4 + large
    network(torch.zeros(4, 10).double(), 1.0)
    assert len(given) == large


class Wide(nn.Module):
    """2000 numbers inside for each of the ten of a sample, as a network of pictures has many more than pixels.

    It says that outside of PyTorch a sample takes so much that two go into a call.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sample_bytes = 2 * CHUNK_BYTES // 5
        self.first, self.last = nn.Linear(10, 20_000), nn.Linear(20_000, 10)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return 0.1 * self.last(self.first(x).tanh())


@pytest.mark.parametrize("more", [{"afs": True}, {"refine": 1}], ids=str)
def test_a_fit_of_many_noises_needs_little_more_memory_than_one_of_few(more: dict[str, Any]) -> None:
    """What grows with them are states, not what the network computes with: a fit is possible where one sample is."""
    torch.manual_seed(0)
    model, peaks = models.adapt(Wide(), (10,)), list[float]()
    one = (Network(model).sample_bytes(torch.zeros(1, 10), 1.0) - model.outside_bytes) / SCRATCH
    for batch in (2, 32):
        settings = Settings(2, "iia-ddim", fit_target="global", fit_batch=batch, heldout=2, reference_steps=24, **more)
        with Live() as live:
            calibrate(model, settings)
        peaks.append(live.peak / one)
    assert 2 <= peaks[0] <= peaks[1] < 3  # two at once, and states; 34 if all were computed at once


def test_states_in_a_file_are_those_in_memory(mixture: Denoiser) -> None:
    """Of more samples than stay together, so that blocks are put in their places."""
    noises, levels = to_fit(mixture, 40, 8, 0), [80.0, 3.0, 0.4]
    here = solution(noises, levels, 6, NO_CACHE)
    there = solution(noises, levels, 6, NO_CACHE, in_memory=0)
    assert isinstance(there.held, np.memmap)
    assert not isinstance(here.held, np.memmap)
    assert list(there) == list(here) == [*levels, 0.0]
    for sigma in here:
        assert there[sigma].dtype == torch.float64
        assert torch.equal(there[sigma], here[sigma])
        assert torch.equal(there.part(slice(30, 40))[sigma], here[sigma][30:40])


def test_states_are_a_mapping(mixture: Denoiser) -> None:
    """So that those of several solutions can be looked up one behind the other."""
    noises = to_fit(mixture, 2, 1, 0)
    first, second = (solution(noises, [80.0, level], 2, NO_CACHE) for level in (5.0, 0.5))
    both: ChainMap[float, Tensor] = ChainMap({}, first, second)  # type: ignore[arg-type]
    assert torch.equal(both[5.0], first[5.0])
    assert torch.equal(both[0.5], second[0.5])
    assert 7.0 not in both


def test_fits_are_in_float32_on_a_gpu_too() -> None:
    """cuDNN rounds convolutions' inputs to ten bits unless it is told not to."""
    allowed: list[bool] = []

    class Asked(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            allowed.append(torch.backends.cudnn.allow_tf32)
            return x

    with torch.backends.cudnn.flags(allow_tf32=True):
        Network(models.adapt(Asked(), (2,)))(torch.zeros(1, 2).double(), 1.0)
        assert torch.backends.cudnn.allow_tf32
    assert set(allowed[-1:]) == {False}
