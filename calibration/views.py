"""What of images a refinement compares: their pixels, or what a network sees in them.

A view is a function from states of the sampler to rows of numbers. The distance of two images is the RMS difference of
their rows. As in S4S (arXiv 2502.17423) and GS (2510.17699), distances are to the converged image of the same noise. No
gradient passes through a view, since derivatives are finite differences.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.backends.cudnn import flags
from torch.nn.functional import interpolate

from edge_sampler.calibration.evaluate.network import NotFiniteError
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.networks import classifier, lpips
from edge_sampler.models.python_file import file_and_function, is_named
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise

VIEWS = ("pixels", "features", "lpips")  # and FILE.py:FUNCTION
IMAGES, VALUES = 500, 2**22  # that a network is shown at a time, at the most: images, and pixels of all of them
SIDES = (8, 32)  # of images that the classifier of 28×28 ones is shown, made as large
ALONE = 1e-2  # part of its features by which an image's may differ when it is shown alone


@dataclass(frozen=True)
class View:
    """``view(x)``: states x float64 [n, *shape] → what is compared, float64 [n, …]; those of ``PIXELS`` themselves.

    ``fingerprint`` tells it from others of that name. Raises UserError where a network returns what it must not.
    """

    name: str
    see: Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None
    decode: Callable[[Tensor], Tensor] = lambda x: x
    fingerprint: str = ""

    @property
    def key(self) -> str:
        """What tells it from all others, where results are kept."""
        return f"{self.name} {self.fingerprint}".strip()

    def __call__(self, x: Tensor) -> Tensor:
        if self.see is None:
            return x
        size = max(1, min(IMAGES, VALUES // x[0].numel()))
        return torch.cat([self._rows(part) for part in torch.split(x, size)])

    @torch.no_grad()
    @flags(enabled=True, deterministic=True, allow_tf32=False)
    def _rows(self, x: Tensor) -> Tensor:
        images = self.decode(x.float())
        assert self.see
        return rows(self.see(images), len(x), images.device, self.name)


PIXELS = View("pixels")


def rows(seen: Any, count: int, device: torch.device, name: str) -> Tensor:
    """float64 [n, d] of features [n, d], or of maps [n, c, h, w], which count alike whatever their sizes.

    Raises UserError for anything else, another count or device, and NotFiniteError for NaN.
    """
    maps = [seen] if isinstance(seen, Tensor) else list(seen) if isinstance(seen, list | tuple) else []
    expected = f"it should return features [{count}, d] or a list of maps [{count}, c, h, w], float, for {count} images"
    if not maps or not all(isinstance(one, Tensor) and one.is_floating_point() for one in maps):
        kinds = [str(one.dtype) if isinstance(one, Tensor) else type(one).__name__ for one in maps]
        raise UserError(f"{name} returned {', '.join(kinds) or type(seen).__name__}: {expected}")
    rank = 2 if isinstance(seen, Tensor) else 4
    if wrong := [list(one.shape) for one in maps if one.dim() != rank or len(one) != count or not one.numel()]:
        raise UserError(f"{name} returned {'' if rank == 2 else 'a map '}{wrong[0]}: {expected}")
    if moved := [one.device for one in maps if one.device != device]:
        raise UserError(f"{name} returned features on {moved[0]} for images on {device}: return them where images are")
    if not all(bool(torch.isfinite(one).all()) for one in maps):
        raise NotFiniteError(f"{name} returned NaN or infinity")
    flat = [one.double().flatten(1) for one in maps]
    values = sum(one.shape[1] for one in flat)
    return torch.cat([one * (values / (len(flat) * one.shape[1])) ** 0.5 for one in flat], 1)


def viewer(name: str, model: Denoiser) -> View:
    """The view of that name, one of ``VIEWS`` or FILE.py:FUNCTION, on the device of the model.

    What the model makes is decoded first, but for pixels: those of a model of latents are its latents. Raises UserError
    where images of this shape have no such view, and where the view is unusable.
    """
    if name == "pixels":
        return PIXELS
    shape = model.spec.inputs.sized(model.spec.output.shape)
    see: Callable[[Tensor], Tensor | Sequence[Tensor]]
    if is_named(name):
        see, content = file_and_function(name)
    elif name == "features":
        see, content = of_classifier(shape, model.device), classifier.WEIGHTS.read_bytes()
    else:
        see, content = lpips.load(shape, model.device)
    view = View(name, see, model.decode)
    return replace(view, fingerprint=fingerprint(view, model, content))


def fingerprint(view: View, model: Denoiser, content: bytes) -> str:
    """Of a view's code or weights, and of what it answers to two images.

    Raises UserError where its answers are no function of each image.
    """
    x = torch.from_numpy(unit_noise([0, 1], model.spec.shape)).double().to(model.device) / 2
    seen, again = view(x), view(x)
    if not torch.equal(seen, again):
        raise UserError(f"{view.name} answered the same images differently; is a network of it still in training mode?")
    alone = torch.cat([view(x[:1]), view(x[1:])])
    if not (alone - seen).norm() <= ALONE * seen.norm():
        raise UserError(f"{view.name} sees an image otherwise when others are beside it: see each by itself")
    if torch.equal(seen[0], seen[1]):
        raise UserError(
            f"{view.name} returned the same for two images that differ, so that there is nothing to compare"
        )
    return hashlib.sha256(content + seen.cpu().numpy().tobytes()).hexdigest()


def of_classifier(shape: Sequence[int], device: torch.device) -> Callable[[Tensor], Tensor]:
    """The features of our first classifier, of each channel by itself, [n, 64·channels].

    It knows 28×28 grey pictures of clothes. Others are made as large, unless they are larger than ``SIDES``: that
    would leave their details out. Raises UserError then, and for what is no image.
    """
    smallest, largest = SIDES
    if len(shape) != 3 or shape[0] not in (1, 3) or not all(smallest <= side <= largest for side in shape[1:]):
        raise UserError(
            f"images are {list(shape)}: features to refine on are of images [1 or 3, H, W] from {smallest}×{smallest} "
            f"to {largest}×{largest}; refine on pixels, on lpips, or on FILE.py:FUNCTION, features of your own"
        )
    network = classifier.load()[0].to(device)
    return partial(channels_seen, network)


def channels_seen(network: classifier.Classifier, images: Tensor) -> Tensor:
    """[n, 64·channels] of images [n, channels, H, W]."""
    grey, size = images.flatten(0, 1)[:, None], classifier.SHAPE[1:]
    if grey.shape[2:] != size:
        grey = interpolate(grey, size, mode="bilinear", antialias=True)
    return classifier.features(network, grey).view(len(images), -1)


def check_name(name: str) -> None:
    """Raises UserError for a name that is no view's, and where there is no FILE.py of it."""
    if name not in VIEWS and not is_named(name):
        raise UserError(f"unknown refine-on {name!r}; known: {', '.join(VIEWS)}, and FILE.py:FUNCTION")
    if is_named(name) and not Path(name.rpartition(":")[0]).is_file():
        raise UserError(f"refine-on {name}: there is no such file")
