"""Calls of a network side by side: nothing of one is seen in another, and what comes is what one thread computes."""

from collections.abc import Callable, Iterator
from threading import Barrier, Lock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_sampler import models
from edge_sampler.calibration.evaluate.network import WORTH, Network
from edge_sampler.calibration.evaluate.side_by_side import Replicas
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError

BOTH = Barrier(2, timeout=20)  # passed by calls that run at the same time alone


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Noting(nn.Module):
    """Notes on itself what it is called with, as networks do, and reads it after another call has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.tensor(0.5)), torch.empty(0)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        if len(x) == 32:  # of 64 samples; other calls are for other ends
            self.seen = x
            BOTH.wait()
            x = self.seen
        return self.weight * x


def denoised(of: nn.Module, x: Tensor) -> Tensor:
    network = Network(models.adapt(of, tuple(x.shape[1:])))
    network.meter.sample_bytes = WORTH  # a sample is as much work as a thread is for
    return network(x, 1.0)


def test_a_call_does_not_see_what_another_notes() -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(denoised(Noting(), x), x / 2, atol=1e-6, rtol=0)


def test_copies_share_the_weights_and_the_examples() -> None:
    model = models.adapt(Noting(), (5,))
    model.examples = {"none": [1]}
    first, second = Replicas().of(model, lambda one, row: torch.full((1,), float(row)))
    assert first is model
    assert second is not model
    assert second.examples is model.examples
    assert [*map(id, second.parameters())] == [*map(id, model.parameters())]


class Locked(nn.Module):
    """Cannot be copied; of calls at the same time it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock()

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        assert self.lock.acquire(blocking=False)
        torch.linalg.svd(torch.randn(100, 100))
        self.lock.release()
        return x / 2


class Hooked(nn.Module):
    """Reads what a hook has noted: on the first of all copies, since a copied function is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = nn.Identity(), torch.empty(0)
        self.inner.register_forward_hook(lambda module, taken, made: setattr(self, "seen", made))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        self.inner(x)
        return 0.5 * self.seen


class Kept(nn.Module):
    """The same by a function that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.empty(0)
        self.note: Callable[[Tensor], None] = lambda x: setattr(self, "seen", x)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        self.note(x)
        return 0.5 * self.seen


class Workspace(nn.Module):
    """Computes in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("work", torch.zeros(32, 5))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        work = self.get_buffer("work")[: len(x)]
        work.copy_(x)
        if len(x) == 32:
            BOTH.wait()
        return 0.5 * work


@pytest.mark.parametrize("network", [Hooked(), Kept(), Workspace()], ids=lambda one: type(one).__name__)
def test_what_a_network_notes_elsewhere_is_not_mixed(network: nn.Module) -> None:
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(denoised(network, x), x / 2, atol=1e-6, rtol=0)


def test_a_network_that_cannot_be_copied_is_called_once_at_a_time() -> None:
    x = torch.randn(300, 5).double()
    torch.testing.assert_close(denoised(Locked(), x), x / 2, atol=1e-6, rtol=0)


@pytest.mark.parametrize("samples", [64, 128])
def test_what_comes_is_to_the_bit_what_one_thread_computes(samples: int) -> None:
    model = models.load("edm-digits")
    x = torch.randn(samples, 1, 8, 8).double()
    both = Network(model)(x, 2.0)
    torch.set_num_threads(1)
    try:
        assert torch.equal(Network(model)(x, 2.0), both)
    finally:
        torch.set_num_threads(2)


class Told(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, *, height: Tensor) -> Tensor:
        return x + height


def test_each_sample_is_told_its_own_conditions() -> None:
    """Those of n samples repeat for k·n, whatever calls they come in."""
    conditions = {"height": Condition((1,))}
    model = models.adapt(Told(), (1,), conditions=conditions, examples={"height": np.zeros((4, 1), np.float32)})
    heights = torch.arange(50.0)[:, None]
    network = Network(model, {"height": heights})
    network.meter.sample_bytes = WORTH
    found = network(torch.zeros(100, 1).double(), 1.0)
    assert torch.equal(found, heights.repeat(2, 1).double())


class Breaks(nn.Module):
    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        if len(x) > 1 and bool((x > 2.5).any()):
            raise UserError("too large")
        return x


def test_an_error_of_a_call_is_the_callers() -> None:
    x = torch.zeros(100, 5).double()
    x[70] = 3.0
    with pytest.raises(UserError, match="too large"):
        denoised(Breaks(), x)


@pytest.mark.parametrize(("samples", "threads"), [(1, 1), (2, 1), (3, 1), (4, 2), (100, 2)])
def test_few_samples_of_a_small_network_are_for_one_thread(samples: int, threads: int) -> None:
    """More would wait for each other longer than they compute."""
    used = list[int]()

    class Observed(Wrapped):
        def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
            used.append(torch.get_num_threads())
            return self.model(x, sigma)

    network = Network(Observed(models.load("edm-digits")))
    network.meter.sample_bytes = WORTH // 2
    network(torch.zeros(4, 1, 8, 8).double(), 1.0)  # copies are made, and tried
    used.clear()
    network(torch.zeros(samples, 1, 8, 8).double(), 1.0)
    side_by_side = len(used) if samples < 100 else 2
    assert sum(used[:side_by_side]) == threads
