"""Denoisers around denoisers: a condition built in, a null class, known entries."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_sampler.models.denoiser import Denoiser, null_of
from edge_sampler.models.guidance import guided
from edge_sampler.models.spec import digest
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.condition import CLASSES, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs

NULL_CLASS = "null_class"  # among what is built in


class BuiltIn(Wrapped):
    """A model of which one condition is a constant: a class, a guidance embedding."""

    def __init__(self, model: Denoiser, name: str, value: np.ndarray) -> None:
        inputs = model.spec.inputs
        kept = {key: one for key, one in inputs.conditions.items() if key != name}
        told = value.item() if value.size == 1 else hashlib.sha256(value.tobytes()).hexdigest()[:16]
        built_in = {**model.spec.built_in, name: told}
        super().__init__(model, inputs=replace(inputs, conditions=kept), built_in=built_in)
        self.name = name
        self.register_buffer("value", torch.from_numpy(np.array(value))[None], persistent=False)

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        return self.model(x, sigma, **conditions, **{self.name: self.get_buffer("value").to(x.device)})


class NullClass(Wrapped):
    """A model of which one class means "no class", as networks have it that were trained with a class more for that."""

    def __init__(self, model: Denoiser, label: int) -> None:
        spec = model.spec
        named = {**spec.inputs.conditions, CLASSES: replace(spec.inputs.conditions[CLASSES], null=label)}
        built_in = {**spec.built_in, NULL_CLASS: label}
        super().__init__(model, inputs=replace(spec.inputs, conditions=named), built_in=built_in)

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        if conditions.get(CLASSES) is None:
            conditions[CLASSES] = null_of(self.spec.inputs.conditions[CLASSES], (), x.device)
        return self.model(x, sigma, **conditions)


class Pinned(Wrapped):
    """A model with some known entries: inpainting, a planner's start and goal, the fixed first actions of a chunk.

    It has two more conditions, ``known`` and ``known_mask`` (1 for a known entry), both shaped as x. There the answer
    of every evaluation is the known entries. So the state there is these entries with noise, and finally the entries
    themselves. A refined plan also weighs earlier answers at its end, and is off by up to 2e-3 at NFE 2, 1e-5 at NFE 4.

    Args:
        model: the denoiser of all entries.

    Examples:
        >>> pinned = edge_sampler.Pinned(model)
        >>> list(pinned.spec.inputs.conditions)
        ['known', 'known_mask']
        >>> x, mask = torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
        >>> mask[..., :4] = 1
        >>> answer = pinned(x, 1.0, known=-x, known_mask=mask)
        >>> answer[0, 0, 0, 3].item(), answer[0, 0, 0, 4].item()
        (-1.0, 0.5)
    """

    def __init__(self, model: Denoiser) -> None:
        inputs = model.spec.inputs
        pinned = {
            "known": Condition(inputs.shape, description="the entries that are known"),
            "known_mask": Condition(inputs.shape, description="1 where an entry is known, else 0"),
        }
        more = replace(inputs, conditions={**inputs.conditions, **pinned})
        super().__init__(model, inputs=more, architecture=digest(["pinned", model.spec.architecture]))

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        known, mask = conditions.pop("known", None), conditions.pop("known_mask", None)
        denoised = self.model(x, sigma, **conditions)
        return denoised if known is None or mask is None else denoised + mask * (known - denoised)


def built_in(model: Denoiser, name: str, value: Any) -> Denoiser:
    """A model with one condition as a constant. Its samplers have one input less.

    Args:
        model: the denoiser.
        name: the condition's name, as a caller gives it.
        value: an array, a number or nested lists, with the condition's shape and dtype.

    Returns:
        The denoiser with the condition built in, in evaluation mode.

    Raises:
        UserError: if the model has no such condition, and for a value of another shape, dtype or range.

    Examples:
        >>> sneakers = edge_sampler.built_in(edge_sampler.load_model("edm-fashion-cond"), "class_labels", 7)
        >>> sneakers.spec.title, dict(sneakers.spec.inputs.conditions)
        ('edm-fashion-cond, class 7', {})
    """
    spec = model.spec
    known = {key: one for key, one in spec.called_with.conditions.items() if key in spec.inputs.conditions}
    if name not in known:
        raise UserError(f"{spec.name} has no condition {name!r} to set; it has {', '.join(known) or 'none'}")
    if name == CLASSES and value == known[name].null:
        raise UserError(f"class-label is {value}; {spec.name} has classes 0 to {known[name].choices - 1}")
    checked, _ = Inputs((), {name: known[name]}, spec.inputs.axes).check({name: value}, 1)
    return BuiltIn(model, name, checked[name][0]).eval()


def conditioned(
    model: Denoiser,
    class_label: int | None = None,
    guidance: float = 1.0,
    one_batch: bool = True,
    values: Mapping[str, Any] | None = None,
    null_class: int | None = None,
) -> Denoiser:
    """The model with guidance S, and with a class and other conditions built in. Raises UserError as those do.

    ``null_class`` is the class that means "no class", where the model has none yet.
    """
    classes = model.spec.classes
    for argument, label in (("class-label", class_label), ("null-class", null_class)):
        if label is not None and not 0 <= label < classes:
            has = f"classes 0 to {classes - 1}" if classes else "no classes"
            raise UserError(f"{argument} is {label}; {model.spec.name} has {has}")
    if null_class is not None:
        model = NullClass(model, null_class)
    if guidance != 1:
        model = guided(model, guidance, one_batch)
    if guidance == 1 and not one_batch:
        raise UserError("two-passes is for guidance, and guidance is 1: name --guidance S, or leave it out")
    if class_label is not None and CLASSES in (values or {}):
        raise UserError(f"class-label and set {CLASSES} both name the class: leave one of them out")
    settled = ({} if class_label is None else {CLASSES: class_label}) | dict(values or {})
    for name, value in settled.items():
        model = built_in(model, name, value)
    return model
