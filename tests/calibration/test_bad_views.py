"""Functions that will not do, and views of what they cannot see: one line, before any work."""

from pathlib import Path

import pytest
import torch

from edge_sampler.calibration import command
from edge_sampler.calibration.calibrate import calibrate
from edge_sampler.calibration.evaluate.noise_sets import to_fit
from edge_sampler.calibration.evaluate.results import NO_CACHE
from edge_sampler.calibration.refinement import refine
from edge_sampler.calibration.settings import Settings
from edge_sampler.calibration.views import View, viewer
from edge_sampler.runtime.errors import UserError
from tests.calibration.toys import file_of, plan_of, toy
from tests.conftest import run_main


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return images.flatten(1) * float('nan')", "see returned NaN or infinity"),
        ("return images.flatten(1)[:1]", r"see returned \[1, 16\]: it should return features \[2, d\]"),
        ("return images", r"see returned \[2, 1, 4, 4\]: it should"),
        ("return images.flatten(1)[:, :0]", r"see returned \[2, 0\]: it should"),
        ("return [images.flatten(1)]", r"see returned a map \[2, 16\]: it should return .*maps \[2, c, h, w\]"),
        ("return [images, images[:1]]", r"see returned a map \[1, 1, 4, 4\]: it should"),
        ("return []", "see returned list: it should"),
        ("return None", "see returned NoneType: it should"),
        ("return images.flatten(1).numpy()", "see returned ndarray: it should"),
        ("return images.flatten(1).long()", r"see returned torch.int64: it should"),
        ("return images.flatten(1).to('meta')", "see returned features on meta for images on cpu"),
        ("return images.flatten(1) + torch.rand(1)", "answered the same images differently"),
        ("return images.flatten(1) - images.flatten(1).mean(0)", "otherwise when others are beside it"),
        ("return torch.ones(len(images), 3)", "the same for two images that differ"),
        ("return images.nothing", "see failed: AttributeError"),
        ("return (", "see failed: SyntaxError"),
    ],
)
def test_a_function_that_will_not_do_is_refused_before_any_work(body: str, message: str, tmp_path: Path) -> None:
    name = file_of(tmp_path, body)
    with pytest.raises(UserError, match=message) as raised:
        calibrate(toy(), Settings(3, "iia-ddim", refine=1, refine_on=name))
    assert "\n" not in str(raised.value)


def test_nan_of_a_later_image_is_refused_too() -> None:
    model = toy()
    view = View("mine", lambda images: images.flatten(1) / (images.flatten(1) < 0.99).float())
    with pytest.raises(UserError, match="mine returned NaN or infinity"):
        refine(plan_of(model), to_fit(model, 12, 8, 0), torch.ones(20, 1, 4, 4).double(), 1, NO_CACHE, view=view)


def test_names_of_views(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"unknown refine-on 'fetures'; known: pixels, features, lpips, and FILE.py:FUNC"
    ):
        Settings(3, refine_on="fetures")
    with pytest.raises(UserError, match=r"absent.py:see: there is no such file"):
        Settings(3, refine_on="absent.py:see")
    name = file_of(tmp_path, "return images").replace(":see", ":other")
    with pytest.raises(UserError, match="has no function other"):
        viewer(name, toy())


def test_to_refine_on_something_means_to_refine(tmp_path: Path) -> None:
    asked = ("--model", "edm-digits", "--nfe", "3", "--solver", "ddim", "--refine-on", "features")
    with pytest.raises(UserError, match=r"--refine-on features .* --refine"):
        run_main(command.main, *asked, "--out", str(tmp_path / "x"))


@pytest.mark.parametrize("shape", [(2, 28, 28), (1, 4, 4), (3, 64, 64), (7, 8)])
def test_features_are_of_images_that_the_classifier_may_know(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"features to refine on are of images .* 8×8 to 32×32; refine on pixels"):
        viewer("features", toy(shape))


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (4, 64, 64), (9,)])
def test_lpips_is_of_large_images(shape: tuple[int, ...], perceptual: Path) -> None:
    with pytest.raises(UserError, match=r"lpips is of images \[1 or 3, H, W\] of 31×31 or more"):
        viewer("lpips", toy(shape))


def test_lpips_that_is_not_there_is_said_in_a_line(perceptual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known, model = viewer("lpips", toy((1, 32, 32))).key, toy((1, 32, 32))
    layers = next(perceptual.parents[2].rglob("alex.pth"))
    torch.save({name: 2 * value for name, value in torch.load(layers).items()}, layers)
    assert viewer("lpips", model).key != known
    perceptual.write_bytes(perceptual.read_bytes()[:-1])
    with pytest.raises(UserError, match="is not what torchvision has by that name"):
        viewer("lpips", model)
    perceptual.unlink()
    with pytest.raises(UserError, match=r"AlexNet's weights at .*downloads nothing by itself: fetch https://"):
        viewer("lpips", model)
    monkeypatch.setattr("edge_sampler.models.networks.lpips.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install .*\[perceptual\]'"):
        viewer("lpips", model)
