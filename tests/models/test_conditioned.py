"""Guidance as a weighted sum of branches, and entries that are known beforehand."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import edge_sampler
from edge_sampler.calibration.arguments import add_model_arguments, load_model
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.guidance import Guided
from edge_sampler.runtime.compare import compare, within
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import sample

CONDITION = edge_sampler.Condition
CONDITIONS = {"text": CONDITION((4,), null=-1.0), "image": CONDITION((2, 4, 4), null=0.0)}


class Net(nn.Module):
    """Text, and an image beside x, as InstructPix2Pix has them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.text = nn.Conv2d(4, 2, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x: Tensor, sigma: Tensor, text: Tensor, image: Tensor) -> Tensor:
        hidden = self.layer(torch.cat([x / (1 + sigma.reshape(-1, 1, 1, 1)), image.expand(x.shape[0], -1, -1, -1)], 1))
        return (hidden + self.text(text)[..., None, None]).tanh()


@pytest.fixture(scope="module")
def model() -> Denoiser:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    examples = {"text": rng.normal(size=(8, 4)), "image": rng.normal(size=(8, 2, 4, 4))}
    return edge_sampler.adapt(Net(), (2, 4, 4), conditions=CONDITIONS, examples=examples)


def drawn(model: Denoiser, count: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    raw, _ = model.spec.called_with.check(model.draw_raw(range(count)), count)
    return torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(0)), model.encode(raw)


@pytest.mark.parametrize("one_batch", [True, False])
def test_two_scales_are_three_branches(model: Denoiser, one_batch: bool) -> None:
    """arXiv 2211.09800, eq. 3: e_∅ + s_I·(e_I - e_∅) + s_T·(e_IT - e_I)."""
    s_text, s_image = 5.0, 1.5
    branches = [
        edge_sampler.Branch(s_text),
        edge_sampler.Branch(s_image - s_text, ("text",)),
        edge_sampler.Branch(1 - s_image, ("text", "image")),
    ]
    guided = edge_sampler.Guided(model, branches, s_text, one_batch)
    x, told = drawn(model)
    no_text = {**told, "text": torch.full((1, 4), -1.0)}
    nothing = {**no_text, "image": torch.zeros(1, 2, 4, 4)}
    both, image, none = (model(x, 0.7, **values) for values in (told, no_text, nothing))
    expected = none + s_image * (image - none) + s_text * (both - image)
    torch.testing.assert_close(guided(x, 0.7, **told), expected, rtol=1e-5, atol=1e-5)
    assert guided.spec.branches == 3


def test_guidance_takes_every_condition_that_has_a_null(model: Denoiser) -> None:
    x, told = drawn(model)
    nothing = {"text": torch.full((1, 4), -1.0), "image": torch.zeros(1, 2, 4, 4)}
    both, none = model(x, 0.7, **told), model(x, 0.7, **nothing)
    torch.testing.assert_close(edge_sampler.guided(model, 2.0)(x, 0.7, **told), 2 * both - none, rtol=1e-5, atol=1e-5)


def test_a_condition_is_built_in(model: Denoiser, tmp_path: Path) -> None:
    one = edge_sampler.built_in(model, "text", [1.0, 2.0, 3.0, 4.0])
    assert list(one.spec.inputs.conditions) == ["image"]
    x, told = drawn(model)
    text = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    torch.testing.assert_close(one(x, 0.7, image=told["image"]), model(x, 0.7, text=text, image=told["image"]))
    for name, value, message in (("txt", 1, "no condition 'txt' to set; it has text, image"), ("text", [1], "shape")):
        with pytest.raises(UserError, match=message):
            edge_sampler.built_in(model, name, value)
    plan = calibrate(one, edge_sampler.Settings(2, "ddim"))
    edge_sampler.export_bundle(one, plan, tmp_path / "bundle")
    bundle = edge_sampler.Bundle.open(tmp_path / "bundle")
    assert within(compare(bundle), 1e-4)
    assert list(bundle.inputs.conditions) == ["image"]


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "heun"])
def test_known_entries_stay(solver: str, model: Denoiser) -> None:
    pinned = edge_sampler.Pinned(model).eval()
    noise, told = drawn(model)
    known, mask = torch.full((3, 2, 4, 4), 0.25), (torch.arange(4) < 2).float().expand(3, 2, 4, 4)
    seen: list[Any] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        seen.append((x, sigma))
        return pinned(x.float(), sigma, known=known, known_mask=mask, **told).double()

    made = sample(denoise, noise.double(), calibrate(model, edge_sampler.Settings(5, solver)))
    torch.testing.assert_close(made[mask > 0].float(), known[mask > 0])
    for x, sigma in seen:  # known entries with noise of their level, but for the first state, which is noise alone
        missing = ((x - sigma * noise)[mask > 0] - 0.25).abs().max()
        assert missing < 0.25 * sigma / model.spec.sigma_max + 1e-3
    assert (made[mask == 0] - 0.25).abs().min() > 1e-6


@pytest.mark.parametrize("options", [(), ("--two-passes",)])
def test_a_command_says_how_guidance_runs(options: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    model = load_model(parser.parse_args(["--model", "edm-fashion-cond", "--guidance", "2", *options]))
    assert isinstance(model, Guided)
    assert model.one_batch == (not options)


def test_a_guided_models_identity_has_its_branches(model: Denoiser) -> None:
    """Else a fit for other weights would be taken for this one's."""
    usual = edge_sampler.guided(model, 2.0)
    branch = edge_sampler.Branch
    same = edge_sampler.Guided(model, [branch(2.0), branch(-1.0, ("text", "image"))], 2.0, True)
    others = [
        edge_sampler.Guided(model, [branch(2.0), branch(-1.0, nulled)], 2.0, True) for nulled in (("text",), ("image",))
    ]
    others += [
        edge_sampler.Guided(model, [branch(weight), branch(-1.0, ("text", "image"))], 2.0, True) for weight in (3, 1)
    ]
    assert same.spec.fingerprint == usual.spec.fingerprint
    assert len({one.spec.fingerprint for one in (usual, *others)}) == 5


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        ([], "no branches"),
        ([(1.0, ("txet",))], "no null of 'txet'; it has of: text, image"),
        ([(1.0, (), ("text",))], "no negative of 'text'"),
        ([(float("nan"),)], "finite number"),
        ([("1",)], "finite number"),
        ([(1.0, "text")], "lists of names"),
    ],
)
def test_branches_that_cannot_be(branches: list[tuple[Any, ...]], message: str, model: Denoiser) -> None:
    with pytest.raises(UserError, match=message):
        edge_sampler.Guided(model, [edge_sampler.Branch(*one) for one in branches], 1.0, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--two-passes", "two-passes is for guidance"),
        ("--class-label 1 --set class_labels=2", "both name the class"),
    ],
)
def test_what_would_change_nothing_is_refused(options: str, message: str) -> None:
    parser = argparse.ArgumentParser()
    add_model_arguments(parser)
    with pytest.raises(UserError, match=message):
        load_model(parser.parse_args(["--model", "edm-fashion-cond", *options.split()]))


def test_guidance_of_what_is_built_in_is_another_model(model: Denoiser) -> None:
    """A condition that is built in first is not nulled in the second branch; built in last, it is."""
    text = [1.0, 2.0, 3.0, 4.0]
    last = edge_sampler.built_in(edge_sampler.guided(model, 3.0), "text", text)
    first = edge_sampler.guided(edge_sampler.built_in(model, "text", text), 3.0)
    x, told = drawn(model)
    assert (last(x, 1.0, image=told["image"]) - first(x, 1.0, image=told["image"])).abs().max() > 0.01
    assert first.spec.fingerprint != last.spec.fingerprint
