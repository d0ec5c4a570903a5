"""The contract's own parts: preconditionings, a class and guidance built in."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler import models
from edge_sampler.calibration.calibrate import examples_of
from edge_sampler.calibration.evaluate.noise_sets import to_fit, to_judge
from edge_sampler.models.conditioned import conditioned
from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.models.precond import (
    DDPM_SIGMAS,
    PREDICTIONS,
    Preconditioning,
    cosine_betas,
    ddpm,
    discrete_sigmas,
    flow,
    iddpm,
)
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs
from tests.bundles import TINY


class Oracle(nn.Module):
    """Knows the one image there is, and answers as networks of a kind are trained to."""

    def __init__(self, image: Tensor, answer: str, preconditioning: Preconditioning, sigma: float) -> None:
        super().__init__()
        self.image, self.answer, self.sigma = image, answer, sigma

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        if self.answer == "flow":
            t = self.sigma / (1 + self.sigma)
            assert noise_label.item() == pytest.approx(1000 * t)
            noise = (x - (1 - t) * self.image) / t
            return noise - self.image
        alpha = 1 / math.sqrt(1 + self.sigma**2)
        spread = self.sigma * alpha
        noise = (x - alpha * self.image) / spread
        answers = {"epsilon": noise, "sample": self.image, "v_prediction": alpha * noise - spread * self.image}
        return answers[self.answer].expand_as(x)


@pytest.mark.parametrize("answer", [*PREDICTIONS, "flow"])
@pytest.mark.parametrize("sigma", [0.02, 1.0, 30.0])
def test_what_a_network_predicts_becomes_the_clean_image(answer: str, sigma: float) -> None:
    """By the definition of each prediction: an all-knowing network denoises wholly."""
    shape = (1, 4, 4)
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    preconditioning = flow() if answer == "flow" else ddpm(prediction_type=answer)
    model = Preconditioned(Oracle(image, answer, preconditioning, sigma), preconditioning, Inputs(shape))
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(image + sigma * noise, sigma), image.expand(3, *shape), atol=2e-4, rtol=0)


def test_a_discrete_network_is_told_its_steps() -> None:
    """At a step's noise level the step, between two of them a number between."""
    every = ddpm().coefficients(torch.tensor(DDPM_SIGMAS, dtype=torch.float32)).c_noise
    assert every.tolist() == list(range(1000))  # which a network may look up, and not the step before
    told = ddpm().coefficients(torch.tensor(DDPM_SIGMAS[[0, 499, 999]], dtype=torch.float32)).c_noise
    torch.testing.assert_close(told, torch.tensor([0.0, 499.0, 999.0]), atol=0.02, rtol=0)
    between = ddpm().coefficients(torch.tensor([math.sqrt(DDPM_SIGMAS[499] * DDPM_SIGMAS[500])], dtype=torch.float32))
    assert between.c_noise.item() == pytest.approx(499.5, abs=0.02)


def test_cosine_levels_are_those_of_the_edm_paper() -> None:
    """arXiv 2206.00364, Table 1, iDDPM: u_{j-1} from u_j, by a recursion of its own."""
    count, c_1, c_2 = 1000, 0.001, 0.008

    def level(j: int) -> float:
        return math.sin(math.pi / 2 * j / (count * (c_2 + 1))) ** 2

    u = [0.0]
    for j in range(count, 0, -1):
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(level(j - 1) / level(j), c_1) - 1))
    np.testing.assert_allclose(discrete_sigmas(cosine_betas(count)), u[1:], rtol=1e-9)
    assert iddpm().sigma_limits == pytest.approx((u[1], u[-1]))


def test_learned_variances_are_left_out() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
            return torch.cat([x, x + 100], dim=1)

    model = Preconditioned(Doubled(), iddpm(), Inputs((3, 4, 4)))
    x = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(model(x, 1.0), x - x / math.sqrt(2))


@pytest.fixture(scope="module")
def tiny() -> Denoiser:
    return models.load(TINY)


@pytest.fixture(scope="module")
def fashion() -> Denoiser:
    """It knows what no class is: some labels were hidden when it was trained."""
    return models.load("edm-fashion-cond")


@pytest.mark.parametrize("one_batch", [True, False])
def test_guidance_moves_along_the_difference_that_the_class_makes(fashion: Denoiser, one_batch: bool) -> None:
    x, labels = torch.randn(3, *fashion.spec.shape), torch.tensor([0, 2, 1])
    known, unknown = fashion(x, 2.0, class_labels=labels), fashion(x, 2.0)
    guided = conditioned(fashion, guidance=3.0, one_batch=one_batch)
    expected = unknown + 3.0 * (known - unknown)
    torch.testing.assert_close(guided(x, 2.0, class_labels=labels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided(x, torch.full((3,), 2.0), class_labels=labels), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(guided(x, 2.0), unknown)
    one = conditioned(fashion, 2, 3.0, one_batch)
    torch.testing.assert_close(one(x, 2.0)[1:2], guided(x, 2.0, class_labels=labels)[1:2], rtol=1e-5, atol=1e-5)


def test_a_class_may_be_built_in(tiny: Denoiser) -> None:
    x = torch.randn(3, *tiny.spec.shape)
    one = conditioned(tiny, 1)
    assert (one.spec.classes, one.spec.built_in, tiny.spec.built_in) == (0, {"class_labels": 1}, {})
    torch.testing.assert_close(
        one(x, 2.0), tiny(x, 2.0, class_labels=torch.ones(3, dtype=torch.int64)), rtol=1e-5, atol=1e-5
    )


def test_what_is_built_in_one_by_one_is_told_as_what_is_built_in_at_once(fashion: Denoiser) -> None:
    """Fits are kept by what the spec says."""
    one_by_one = conditioned(conditioned(fashion, guidance=3.0), 1)
    at_once = conditioned(fashion, 1, guidance=3.0)
    assert one_by_one.spec == at_once.spec
    assert one_by_one.spec.fingerprint == at_once.spec.fingerprint != fashion.spec.fingerprint
    assert at_once.spec.title == f"{fashion.spec.name}, class 1, guidance 3"
    x = torch.randn(2, *fashion.spec.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one_by_one(x, 1.0), at_once(x, 1.0))


def test_classes_and_guidance_that_cannot_be(tiny: Denoiser, digits: Denoiser) -> None:
    for model, allowed in ((tiny, "classes 0 to"), (digits, "has no classes")):
        with pytest.raises(UserError, match=f"class-label is 99; .*{allowed}"):
            conditioned(model, 99)
    with pytest.raises(UserError, match="guidance 2 needs a condition with a null"):
        conditioned(digits, guidance=2.0)
    with pytest.raises(
        UserError, match=r"guidance 2 needs .* \(its classes have no value that means none: name one by"
    ):
        conditioned(tiny, guidance=2.0)
    with pytest.raises(UserError, match=r"null-class is 99; official-format-tiny has classes 0 to \d+$"):
        conditioned(tiny, guidance=2.0, null_class=99)
    with pytest.raises(UserError, match="guidance is inf"):
        conditioned(tiny, guidance=float("inf"), null_class=0)


class Overwrites(nn.Module):
    """Writes into all that it is given."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x.mul_(0.5) + noise.mul_(0.01).reshape(-1, 1)


def test_a_network_may_write_into_what_it_is_given() -> None:
    model = edge_sampler.adapt(Overwrites(), (2,))
    x, sigma = torch.ones(1, 2), torch.tensor(2.0)
    assert torch.equal(model(x, sigma), model(x, 2.0))
    assert (sigma.item(), x[0, 0].item()) == (2.0, 1.0)


class Told(nn.Module):
    def forward(self, x: Tensor, noise: Tensor, to: Tensor) -> Tensor:
        return 0.5 * (x + to)


CONDITIONS = {"to": edge_sampler.Condition((1,))}


def test_examples_by_a_function_judge_by_others_than_fit() -> None:
    def by_seed(seeds: Sequence[int]) -> dict[str, np.ndarray]:
        return {"to": np.array([[np.random.RandomState(seed).normal()] for seed in seeds], np.float32)}

    model = edge_sampler.adapt(Told(), (1,), conditions=CONDITIONS, examples=by_seed)
    fitted, judged = to_fit(model, 4, 2, 0).network.conditions["to"], to_judge(model, 4).network.conditions["to"]
    assert not set(fitted.flatten().tolist()) & set(judged.flatten().tolist())


def test_examples_by_a_function_that_fails_are_refused_at_once() -> None:
    rows = np.zeros((1000, 1), np.float32)
    with pytest.raises(UserError, match=r"examples failed for seeds such as \d{10} \(IndexError.*take row"):
        edge_sampler.adapt(Told(), (1,), conditions=CONDITIONS, examples=lambda seeds: {"to": rows[seeds]})


@pytest.mark.parametrize(("rows", "told"), [(3, (3, 0)), (4, (3, 1)), (8, (6, 2))])
def test_a_report_tells_the_examples_that_judge(rows: int, told: tuple[int, int]) -> None:
    model = edge_sampler.adapt(
        Told(), (1,), conditions=CONDITIONS, examples={"to": np.arange(rows, dtype=np.float32)[:, None]}
    )
    assert examples_of(model) == told
    assert examples_of(edge_sampler.built_in(model, "to", [1.0])) == ()
