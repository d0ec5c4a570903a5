"""What refinement may compare: any function of images, told from every other."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edge_sampler.calibration import command
from edge_sampler.calibration import refinement as refining
from edge_sampler.calibration.derivatives import derivatives
from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.calibration.evaluate.noise_sets import Noises, to_fit
from edge_sampler.calibration.evaluate.results import NO_CACHE, Cache
from edge_sampler.calibration.fit import image_errors
from edge_sampler.calibration.refinement import (
    noise_bytes,
    noises_at_once,
    normal_equations,
    parameters,
    refine,
)
from edge_sampler.calibration.views import PIXELS, VALUES, View, rows, viewer
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks import classifier
from edge_sampler.models.own import adapt
from edge_sampler.runtime.plan import Plan
from tests.calibration.toys import MIXTURE, Toy, file_of, plan_of, toy
from tests.conftest import run_main

See = Callable[[Tensor], object]


@pytest.fixture(scope="module")
def model() -> Denoiser:
    return toy()


@pytest.fixture(scope="module")
def noises(model: Denoiser) -> Noises:
    return to_fit(model, 12, 8, 0)


@pytest.fixture(scope="module")
def plan(model: Denoiser) -> Plan:
    return plan_of(model)


@pytest.fixture(scope="module")
def converged(noises: Noises) -> Tensor:
    return torch.tanh(0.7 * noises.noise)


ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0]


@pytest.mark.parametrize(
    ("see", "rounding"),
    [
        (lambda images: images.flatten(1), 1e-4),
        (lambda images: [images], 1e-4),
        (lambda images: images.flatten(1) @ torch.tensor(ROTATION).float(), 1e-3),
    ],
    ids=["rows", "a map", "an orthogonal map"],
)
def test_a_view_that_keeps_distances_refines_as_pixels_do(
    see: See, rounding: float, noises: Noises, converged: Tensor, plan: Plan
) -> None:
    seen = refine(plan, noises, converged, 3, NO_CACHE, view=View("mine", see))  # type: ignore[arg-type]
    pixels = refine(plan, noises, converged, 3, NO_CACHE)
    assert min(pixels.errors) < 0.8 * pixels.errors[0]
    np.testing.assert_allclose(seen.errors, pixels.errors, rtol=rounding)
    np.testing.assert_allclose(parameters(seen.plan), parameters(pixels.plan), rtol=0.02, atol=0.002)


def test_what_a_view_does_not_show_does_not_count(noises: Noises, converged: Tensor, plan: Plan) -> None:
    """A goal that is out of reach in half of an image, which is not seen."""
    spoilt = converged.clone()
    spoilt[:, :, 2:] += 2 * torch.randn(spoilt[:, :, 2:].shape, generator=torch.Generator().manual_seed(0)).double()
    half = View("upper", lambda images: images[:, :, :2].flatten(1))
    blind = refine(plan, noises, spoilt, 3, NO_CACHE, view=half)
    np.testing.assert_allclose(blind.errors, refine(plan, noises, converged, 3, NO_CACHE, view=half).errors)
    assert min(refine(plan, noises, spoilt, 3, NO_CACHE).errors) > 2 * min(blind.errors)


def test_maps_count_alike_whatever_their_sizes() -> None:
    """An error's square is the mean over maps of each one's mean square."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(5, *shape, generator=generator) for shape in ((1, 2, 2), (3, 8, 8), (2, 1, 5))]
    expected = torch.stack([one.double().square().flatten(1).mean(1) for one in maps]).mean(0).sqrt()
    torch.testing.assert_close(image_errors(rows(maps, 5, torch.device("cpu"), "mine")), expected)
    alone = rows(maps[0].flatten(1), 5, torch.device("cpu"), "mine")
    torch.testing.assert_close(alone, maps[0].flatten(1).double())


def test_a_view_is_shown_few_images_at_a_time() -> None:
    counts = list[int]()

    def see(images: Tensor) -> Tensor:
        counts.append(len(images))
        assert images.dtype == torch.float32
        return 2 * images[:, :9]

    x = torch.randn(7, 1).double().expand(7, VALUES // 3)
    torch.testing.assert_close(View("mine", see)(x), 2 * x[:, :9], atol=1e-6, rtol=1e-6)
    assert counts == [3, 3, 1]


def test_derivatives_of_few_noises_at_a_time_add_up(
    model: Denoiser, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of no more than memory holds: 5 noises, when it is for 2, are 2, 2 and 1; for less than 1 each is alone."""
    noises, view = to_fit(model, 5, 40, 0), View("mine", lambda images: images.flatten(1)[:, :9])
    few, converged = noises.part(slice(0, 5)), torch.tanh(0.7 * noises.noise)
    whole = normal_equations(few, converged[:5], plan, view, NO_CACHE)
    together = refine(plan, noises, converged, 0, NO_CACHE, view=view)
    sizes = list[int]()

    def counted(network: Network, noise: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        sizes.append(len(noise))
        return derivatives(network, noise, plan)

    monkeypatch.setattr(refining, "derivatives", counted)
    for room, expected in ((2.5, [2, 2, 1]), (0.5, [1] * 5)):
        memory = int(room * noise_bytes(len(parameters(plan)), plan.nfe, 16, 9))
        at_once = noises_at_once(plan, converged, view, memory)
        found = normal_equations(few, converged[:5], plan, view, NO_CACHE, at_once)
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())
        refined = refine(plan, noises, converged, 1, NO_CACHE, view=view, memory=memory)
        assert refined.errors[0] == pytest.approx(together.errors[0], rel=1e-4)  # the 40 held out come in pieces, too
        assert sizes == 2 * expected
        sizes.clear()


def test_another_views_results_are_not_taken_over(
    model: Denoiser, noises: Noises, converged: Tensor, plan: Plan, tmp_path: Path
) -> None:
    """One of another name, another function of one file, the same name with another file, or with other weights."""
    cache = Cache(tmp_path / "cache")
    weights, name = tmp_path / "weights.pt", file_of(tmp_path, "return images.flatten(1)")
    loads = f"import torch\n\n\ndef see(images):\n    return images.flatten(1)[:, :9] * torch.load({str(weights)!r})\n"

    def errors() -> tuple[float, ...]:
        found = refine(plan, noises, converged, 1, cache, view=viewer(name, model)).errors
        assert found == refine(plan, noises, converged, 1, NO_CACHE, view=viewer(name, model)).errors
        return found

    found = [refine(plan, noises, converged, 1, cache).errors, errors()]
    file_of(tmp_path, "return 3 * images.flatten(1)")
    found.append(errors())
    for gain in (1.0, 1.0001):
        torch.save(torch.tensor(gain), weights)
        (tmp_path / "mine.py").write_text(loads)
        found.append(errors())
    assert len(set(found[1:])) == 4
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    keys = {viewer(name, model).key, viewer(file_of(tmp_path, "return images.flatten(1)", "other.py"), model).key}
    (tmp_path / "mine.py").write_text(loads + "\n\nother = see\n")
    keys |= {viewer(name, model).key, viewer(name.replace(":see", ":other"), model).key, PIXELS.key}
    assert len(keys) == 5


def test_a_killed_refinement_on_a_function_goes_on(
    model: Denoiser, noises: Noises, converged: Tensor, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = file_of(tmp_path, "return images.flatten(1)[:, ::2]")
    first = refine(plan, noises, converged, 2, Cache(tmp_path), view=viewer(name, model))
    monkeypatch.setattr(refining, "derivatives", None)
    again = refine(plan, noises, converged, 2, Cache(tmp_path), view=viewer(name, model))
    assert again == first


def test_the_command_takes_a_file_that_has_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("KEPT = 5\n")
    body = "import neighbour\n    return images.flatten(1)[:, : neighbour.KEPT]"
    view = file_of(tmp_path, body)
    small = (
        "--model",
        MIXTURE,
        "--solver",
        "ddim",
        "--nfe",
        "2",
        "--fit-batch",
        "4",
        "--heldout",
        "3",
        "--refine",
        "1",
    )
    out = tmp_path / "plan.json"
    paths = sys.path[:]
    run_main(command.main, *small, "--refine-on", view, "--cache", str(tmp_path / "cache"), "--out", str(out))
    assert sys.path == paths
    report = Plan.load(out).report
    assert report is not None
    assert report.settings["refine_on"] == view
    assert report.refinement[-1] <= report.refinement[0]


def test_features_are_those_of_the_classifier() -> None:
    """As they are for 28×28 images; of others those of the images made as large, channel by channel."""
    images, network = torch.rand(3, 1, 28, 28).double() * 2 - 1, classifier.load()[0]
    expected = classifier.features(network, images).double()
    torch.testing.assert_close(viewer("features", toy((1, 28, 28)))(images), expected)
    coloured = images.expand(-1, 3, -1, -1) * torch.tensor([1.0, 0.5, -1.0]).view(3, 1, 1)
    seen = viewer("features", toy((3, 28, 28)))(coloured)
    torch.testing.assert_close(seen[:, :64], expected)
    torch.testing.assert_close(seen[:, 128:], classifier.features(network, -images).double())
    flat = torch.linspace(-1, 1, 2).view(2, 1, 1, 1).double()
    small = viewer("features", toy((1, 8, 12)))(flat.expand(2, 1, 8, 12))
    torch.testing.assert_close(small, classifier.features(network, flat.expand(2, 1, 28, 28)).double())


class Doubled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(x, scale_factor=2)


def test_latents_are_decoded_before_they_are_seen(tmp_path: Path) -> None:
    from edge_sampler.models.own import Decoder
    from edge_sampler.runtime.inputs import Output

    shape = (1, 4, 4)
    model = adapt(
        Toy(shape), shape, sigma_min=0.01, sigma_max=10.0, decoder=Decoder(Doubled(), Output("images", (1, 8, 8)))
    )
    x = torch.randn(2, *shape).double()
    decoded = Doubled()(x.float())
    seen = viewer(file_of(tmp_path, "return [images]"), model)(x)
    torch.testing.assert_close(seen, decoded.flatten(1).double())
    expected = viewer("features", toy((1, 8, 8)))(decoded.double())
    torch.testing.assert_close(viewer("features", model)(x), expected)
    assert viewer("pixels", model)(x) is x


def test_lpips_is_the_papers_distance(perceptual: Path) -> None:
    """Eq. 1: of unit vectors at each place, weighed squares of differences, means over places, summed over layers."""
    view = viewer("lpips", toy((3, 40, 33)))
    one, other = torch.rand(2, 3, 40, 33).double() * 2 - 1, torch.rand(2, 3, 40, 33).double() * 2 - 1
    state, layers = torch.load(perceptual), torch.load(next(perceptual.parents[2].rglob("alex.pth")))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def activations(images: Tensor) -> list[Tensor]:
        x, found = ((images - shift.view(3, 1, 1)) / scale.view(3, 1, 1)).float(), []
        for place, (stride, padding, pooled) in {
            0: (4, 2, False), 3: (1, 2, True), 6: (1, 1, True), 8: (1, 1, False), 10: (1, 1, False)
        }.items():  # fmt: skip
            x = torch.nn.functional.max_pool2d(x, 3, 2) if pooled else x
            weights, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
            x = torch.nn.functional.conv2d(x, weights, bias, stride, padding).relu()
            found.append(torch.nn.functional.normalize(x, dim=1))
        return found

    distance = sum(
        ((a - b).square() * layers[f"lin{layer}.model.1.weight"]).sum(1).mean((1, 2))
        for layer, (a, b) in enumerate(zip(activations(one), activations(other), strict=True))
    )
    assert isinstance(distance, Tensor)
    torch.testing.assert_close(image_errors(view(one) - view(other)).square().float(), distance, rtol=1e-3, atol=1e-6)
    grey = viewer("lpips", toy((1, 40, 33)))
    torch.testing.assert_close(grey(one[:, :1]), view(one[:, :1].expand(-1, 3, -1, -1)))
    plan = refine(
        plan_of(toy((1, 32, 32))), to_fit(toy((1, 32, 32)), 2, 2, 0), torch.rand(4, 1, 32, 32).double(), 1, NO_CACHE,
        view=viewer("lpips", toy((1, 32, 32))),
    )  # fmt: skip
    assert plan.errors[-1] <= plan.errors[0]
