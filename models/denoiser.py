"""The denoiser contract: ``denoised = model(x, sigma, class_labels=None)``, what every model of this project is."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from edge_sampler.models.precond import Preconditioning
from edge_sampler.runtime.errors import UserError

SAMPLING_RANGE = (0.002, 80.0)  # arXiv 2206.00364, Table 1; a network's own limits narrow it


@dataclass(frozen=True)
class ModelSpec:
    """What a denoiser is, apart from the values of its weights."""

    name: str
    shape: tuple[int, int, int]  # channels, height, width
    classes: int  # that the caller names; 0: none
    sigma_min: float  # the noise levels to sample between, in pixel units
    sigma_max: float
    licence: str
    weights_sha256: str  # of names, shapes and float32 values, so the same in every file format
    random_weights: bool  # True: a dry run, whose images mean nothing
    class_label: int | None = None  # the one class that is built in
    guidance: float = 1.0  # S of classifier-free guidance that is built in

    @property
    def title(self) -> str:
        """The name, and what is built in: "edm-fashion-cond, class 7, guidance 2"."""
        built_in = [f"class {self.class_label}"] * (self.class_label is not None)
        built_in += [f"guidance {self.guidance:g}"] * (self.guidance != 1)
        return ", ".join([self.name, *built_in])


class Denoiser(nn.Module):
    """Args of a call:

        x: noisy images, float32 [n, channels, height, width].
        sigma: noise level, standard deviation in pixel units; a number, a scalar tensor, or [n].
        class_labels: int64 [n], -1 meaning "no class"; None is -1 for every image.

    Returns the expected clean images, float32, shaped as x. ``spec`` describes the model.
    """

    spec: ModelSpec

    @property
    def device(self) -> torch.device:
        return next(self.parameters(), torch.empty(0)).device


class Preconditioned(Denoiser):
    """A raw network behind the contract: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise).

    ``network(x, c_noise)`` gets c_noise [n or 1] and, where there are ``classes``, one-hot classes [n or 1, classes] as
    its third argument; zeros are "no class". Of more channels than x has (learned variances) the first are taken.
    """

    def __init__(
        self, network: nn.Module, preconditioning: Preconditioning, shape: tuple[int, int, int], classes: int = 0
    ) -> None:
        super().__init__()
        self.model, self.preconditioning, self.shape, self.classes = network, preconditioning, shape, classes

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        c = self.preconditioning.coefficients(sigma)
        predicted = self.model(per_image(c.in_) * x, c.noise, *self.one_hot(class_labels, x.device))
        if predicted.shape[1] > self.shape[0]:
            predicted = predicted[:, : self.shape[0]]
        return per_image(c.skip) * x + per_image(c.out) * predicted

    def one_hot(self, class_labels: Tensor | None, device: torch.device) -> list[Tensor]:
        if not self.classes:
            return []
        if class_labels is None:
            return [torch.zeros(1, self.classes, device=device)]
        return [(class_labels[:, None] == torch.arange(self.classes, device=device)).float()]

    def describe(self, name: str, licence: str, weights_sha256: str, random_weights: bool = False) -> "Preconditioned":
        """Itself, ready to use: in evaluation mode, with its ``spec``."""
        lowest, highest = self.preconditioning.sigma_limits
        self.spec = ModelSpec(
            name=name,
            shape=self.shape,
            classes=self.classes,
            sigma_min=max(SAMPLING_RANGE[0], lowest),
            sigma_max=min(SAMPLING_RANGE[1], highest),
            licence=licence,
            weights_sha256=weights_sha256,
            random_weights=random_weights,
        )
        return self.eval().requires_grad_(False)


class Conditioned(Denoiser):
    """A model with a class, or classifier-free guidance (arXiv 2207.12598), built in: D_∅ + S·(D_c - D_∅).

    Both branches run as one batch of twice the size, or one after the other.
    """

    def __init__(self, model: Denoiser, class_label: int | None, guidance: float, one_batch: bool) -> None:
        super().__init__()
        self.model, self.class_label, self.guidance, self.one_batch = model, class_label, guidance, one_batch
        classes = model.spec.classes if class_label is None else 0
        guidance *= model.spec.guidance  # guidance of a guided model: the scales multiply
        self.spec = replace(model.spec, classes=classes, class_label=class_label, guidance=guidance)

    def forward(self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None) -> Tensor:
        if self.class_label is not None:
            class_labels = torch.tensor([self.class_label], device=x.device)
        if self.guidance == 1:
            return self.model(x, sigma, class_labels)
        if class_labels is None:  # guided towards nothing
            return self.model(x, sigma)
        if self.one_batch:
            none = torch.tensor([-1], device=x.device)
            labels = torch.cat([labels.expand(x.shape[0]) for labels in (class_labels, none)])
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
            both = self.model(torch.cat([x, x]), sigma if len(sigma) == 1 else sigma.repeat(2), labels)
            denoised, unconditional = both.unflatten(0, (2, -1)).unbind()
        else:
            denoised, unconditional = self.model(x, sigma, class_labels), self.model(x, sigma)
        return unconditional + self.guidance * (denoised - unconditional)


def conditioned(
    model: Denoiser, class_label: int | None = None, guidance: float = 1.0, one_batch: bool = True
) -> Denoiser:
    """The model of one class, of guidance S, or both. Raises UserError where it has no such class, or none at all."""
    name, classes = model.spec.name, model.spec.classes
    if class_label is not None and not 0 <= class_label < classes:
        has = f"classes 0 to {classes - 1}" if classes else "none"
        raise UserError(f"class-label is {class_label}; {name} has {has}")
    if not abs(guidance) < float("inf"):
        raise UserError(f"guidance is {guidance}; it must be a finite number")
    if guidance != 1 and not classes:
        raise UserError(f"guidance {guidance:g} needs a model with classes, and {name} has none")
    if class_label is None and guidance == 1:
        return model
    return Conditioned(model, class_label, guidance, one_batch).eval()


def per_image(value: Tensor | float) -> Tensor | float:
    """[n] → [n, 1, 1, 1], to multiply images with."""
    return value if isinstance(value, float) else value[:, None, None, None]
