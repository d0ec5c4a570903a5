"""Denoisers around denoisers: a condition built in, known entries, and guidance."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.denoiser import Denoiser, Examples, Levels, digest, null_of
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import CLASSES, Condition, Inputs
from edge_sampler.runtime.text import Text

NULL_CLASS = "null_class"  # among what is built in


class Wrapped(Denoiser):
    """A denoiser around another, with its stages and examples."""

    def __init__(self, model: Denoiser, **changes: Any) -> None:
        nn.Module.__init__(self)  # the stages are the model's
        self.model = model
        self.spec = replace(model.spec, **changes)

    @property
    def encoder(self) -> nn.Module | None:  # type: ignore[override]
        return self.model.encoder

    @property
    def decoder(self) -> nn.Module | None:  # type: ignore[override]
        return self.model.decoder

    @property
    def examples(self) -> Examples:
        return self.model.examples

    @examples.setter
    def examples(self, examples: Examples) -> None:
        self.model.examples = examples

    @property
    def own_levels(self) -> Levels | None:  # type: ignore[override]
        return self.model.own_levels


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
    """A model of which some entries are known: inpainting, a planner's start and goal, the frozen head of a chunk.

    Two conditions more, ``known`` and ``known_mask`` (1 where it is known), both shaped as x. The known entries are the
    answer there at every evaluation, so that the state there is those with noise of its level, and in the end they.
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


@dataclass(frozen=True)
class Branch:
    """One term of a guided answer: its weight, the conditions that it nulls, and those that are their negatives in it.

    A negative is the condition called ``negative_…``, which ``Negatable`` adds.
    """

    weight: float
    nulled: tuple[str, ...] = ()
    negated: tuple[str, ...] = ()


NEGATIVE = "negative_"  # begins the name of a condition that stands for another in a branch
AWAY = "what guidance leads away from, as towards"


class Negatable(Wrapped):
    """A model with a negative of each text that it is told: by default the empty text, "".

    Its denoiser's conditions that are made of text have negatives too, which it leaves to ``Guided`` to use.
    """

    def __init__(self, model: Denoiser) -> None:
        spec, conditions = model.spec, model.spec.inputs.conditions
        texts = {name: one.text for name, one in spec.called_with.conditions.items() if one.text}
        if any(name.startswith(NEGATIVE) for name in texts):
            raise UserError(f"{spec.name} has guidance already")

        def negative(text: Text) -> Text:
            if text.follows:
                return replace(text, follows=NEGATIVE + text.follows)
            return replace(text, default="")

        def negatives(known: Mapping[str, Condition], names: Iterable[str]) -> dict[str, Condition]:
            return {
                NEGATIVE + name: replace(known[name], text=text and negative(text), description=f"{AWAY} {name}")
                for name in names
                for text in [known[name].text]
            }

        encoded = [name for name in texts if name in spec.raw]
        self.negated = (*(spec.made if encoded else ()), *(name for name in texts if name in conditions))
        super().__init__(
            model,
            inputs=replace(spec.inputs, conditions={**conditions, **negatives(conditions, self.negated)}),
            raw={**spec.raw, **negatives(spec.raw, encoded)},
            made=(*spec.made, *(NEGATIVE + name for name in (spec.made if encoded else ()))),
        )
        self.encoded = [list(spec.raw).index(name) for name in encoded]

    @property
    def encoder(self) -> nn.Module | None:  # type: ignore[override]
        encoder = super().encoder
        return EncodesBoth(encoder, self.encoded) if encoder is not None and self.encoded else encoder

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        return self.model(x, sigma, **conditions)


class EncodesBoth(nn.Module):
    """An encoder of texts and of their negatives, which come behind all that it is given."""

    def __init__(self, encoder: nn.Module, places: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.places = encoder, places

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        count = len(values) - len(self.places)
        negatives = list(values[:count])
        for place, value in zip(self.places, values[count:], strict=True):
            negatives[place] = value
        return (*self.encoder(*values[:count]), *self.encoder(*negatives))


class Guided(Wrapped):
    """A weighted sum of a model's answers under different conditions: Σ weight·D(x; conditions, some of them nulled).

    Classifier-free guidance (arXiv 2207.12598) is S·D_c + (1 - S)·D_∅. All branches run as one batch of several times
    the size, or one after the other.
    """

    def __init__(self, model: Denoiser, branches: Sequence[Branch], guidance: float, one_batch: bool) -> None:
        scale = guidance * model.spec.guidance  # guidance of a guided model: the scales multiply
        super().__init__(model, guidance=scale, branches=len(branches) * model.spec.branches)
        self.parts, self.one_batch = tuple(branches), one_batch

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        negatives = {NEGATIVE + name for part in self.parts for name in part.negated}
        given = {name: value for name, value in conditions.items() if name not in negatives}
        told = [
            given
            | self.nulls(part.nulled, conditions, x)
            | {name: conditions[NEGATIVE + name] for name in part.negated}
            for part in self.parts
        ]
        if self.one_batch:
            count = len(told)
            sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
            joined = {
                name: torch.cat([value.expand(x.shape[0], *value.shape[1:]) for value in values])
                for name in given
                if (values := [value for branch in told if (value := branch[name]) is not None])
            }
            repeated = sigma if sigma.shape[0] == 1 else sigma.repeat(count)
            answers = self.model(torch.cat([x] * count), repeated, **joined).unflatten(0, (count, -1)).unbind()
        else:
            answers = tuple(self.model(x, sigma, **values) for values in told)
        guided = answers[0] * self.parts[0].weight
        for answer, part in zip(answers[1:], self.parts[1:], strict=True):
            guided = guided + answer * part.weight
        return guided

    def nulls(self, names: Sequence[str], conditions: Mapping[str, Tensor | None], x: Tensor) -> dict[str, Tensor]:
        """[1, …] of each null, as large as the value that it stands for."""
        told = {name: value for name in names if (value := conditions.get(name)) is not None}
        known = self.spec.inputs.conditions
        return {name: null_of(known[name], tuple(value.shape[1:]), x.device) for name, value in told.items()}


def guided(model: Denoiser, scale: float, one_batch: bool = True) -> Denoiser:
    """The model with classifier-free guidance: every condition that has a null is nulled in the second branch.

    A condition that is a text, or that the encoder makes of one, is there what the caller gives as ``negative_…``, by
    default of the empty text. Raises UserError for a scale that is no finite number, and where no condition is of
    either kind.
    """
    if not abs(scale) < float("inf"):
        raise UserError(f"guidance is {scale}; it must be a finite number")
    negated: tuple[str, ...] = ()
    if any(one.text for one in model.spec.called_with.conditions.values()):
        model = Negatable(model)
        negated = model.negated
    nulled = tuple(
        name for name, one in model.spec.inputs.conditions.items() if one.null is not None and name not in negated
    )
    if not nulled and not negated:
        classes = " (its classes have no value that means none: name one by --null-class)" * bool(model.spec.classes)
        raise UserError(
            f"guidance {scale:g} needs a condition with a null, or a text, and {model.spec.name} has neither{classes}"
        )
    return Guided(model, [Branch(scale), Branch(1 - scale, nulled, negated)], scale, one_batch).eval()


def built_in(model: Denoiser, name: str, value: Any) -> Denoiser:
    """The model with one condition a constant. Raises UserError where it has none, or one of another kind."""
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
            has = f"classes 0 to {classes - 1}" if classes else "none"
            raise UserError(f"{argument} is {label}; {model.spec.name} has {has}")
    if null_class is not None:
        model = NullClass(model, null_class)
    if guidance != 1:
        model = guided(model, guidance, one_batch)
    settled = ({} if class_label is None else {CLASSES: class_label}) | dict(values or {})
    for name, value in settled.items():
        model = built_in(model, name, value)
    return model
