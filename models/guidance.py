"""Guidance: a weighted sum of a denoiser's answers under different conditions."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from edge_sampler.models.arguments import check_kinds
from edge_sampler.models.denoiser import Denoiser, null_of
from edge_sampler.models.spec import ModelSpec, digest
from edge_sampler.models.wrapped import Wrapped
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.text import Text


@dataclass(frozen=True)
class Branch:
    """One term of a guided answer.

    Args:
        weight: the weight of this branch's answer in the sum.
        nulled: the conditions that have their null value in this branch.
        negated: the conditions that have their negative value in this branch, which the caller gives as ``negative_…``.
            ``guided`` adds negatives to a model that takes a text.

    Raises:
        UserError: for a weight that is no finite number.

    Examples:
        >>> unconditional = edge_sampler.Branch(-0.5, nulled=("class_labels",))
        >>> unconditional.weight
        -0.5
    """

    weight: float
    nulled: tuple[str, ...] = ()
    negated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        numeric = isinstance(self.weight, numbers.Real) and math.isfinite(self.weight)
        named = all(isinstance(names, tuple | list) for names in (self.nulled, self.negated))
        if not numeric or not named:
            raise UserError(f"{self}: the weight must be a finite number, and nulled and negated lists of names")
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "nulled", tuple(self.nulled))
        object.__setattr__(self, "negated", tuple(self.negated))


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

    Classifier-free guidance (arXiv 2207.12598, eq. 6) is S·D_c + (1 - S)·D_∅; InstructPix2Pix's (arXiv 2211.09800,
    eq. 3) has three branches.

    Args:
        model: the denoiser; each condition that a branch nulls needs a null value.
        branches: the terms of the sum.
        guidance: the scale, for people and records only; the branches' weights decide.
        one_batch: whether all branches run as one batch of several times the size, or one after the other.

    Raises:
        UserError: without branches, and for a branch that names a condition which the model does not have, or which has
            no null.

    Examples:
        >>> told = edge_sampler.load_model("edm-fashion-cond")
        >>> terms = [edge_sampler.Branch(1.5), edge_sampler.Branch(-0.5, ("class_labels",))]
        >>> mine = edge_sampler.Guided(told, terms, guidance=1.5, one_batch=True)
        >>> x, labels = torch.randn(2, 1, 28, 28), torch.tensor([3, 7])
        >>> usual = edge_sampler.guided(told, 1.5)
        >>> torch.allclose(mine(x, 1.0, class_labels=labels), usual(x, 1.0, class_labels=labels))
        True
        >>> mine.nulls(["class_labels"], {"class_labels": labels}, x)
        {'class_labels': tensor([-1])}
    """

    def __init__(self, model: Denoiser, branches: Sequence[Branch], guidance: float, one_batch: bool) -> None:
        self.parts, self.one_batch, spec = tuple(branches), one_batch, model.spec
        check_branches(spec, self.parts)
        facts, settled = spec.architecture, settled_before(model)
        if settled or self.parts != classifier_free(model, guidance):  # which the scale tells
            facts = digest(["guided", spec.architecture, [asdict(part) for part in self.parts], *settled])
        scale = guidance * spec.guidance  # guidance of a guided model: the scales multiply
        super().__init__(model, guidance=scale, branches=len(self.parts) * spec.branches, architecture=facts)

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
        """What stands for conditions that a branch nulls.

        Args:
            names: of the conditions; one that is not given is left out.
            conditions: as given, by name, [n, …].
            x: noisy data, on whose device they shall be.

        Returns:
            By name, [1, …], as large as the value that it stands for.
        """
        told = {name: value for name in names if (value := conditions.get(name)) is not None}
        known = self.spec.inputs.conditions
        return {name: null_of(known[name], tuple(value.shape[1:]), x.device) for name, value in told.items()}


def settled_before(model: Denoiser) -> list[str]:
    """The conditions with a null that are built in already: no branch nulls them, as it would the other way round."""
    root = model
    while isinstance(root, Wrapped):
        root = root.model
    nulls = [name for name, one in root.spec.inputs.conditions.items() if one.null is not None]
    return [name for name in nulls if name in model.spec.built_in]


def check_branches(spec: ModelSpec, branches: Sequence[Branch]) -> None:
    """Raises UserError as ``Guided`` does."""
    if not branches:
        raise UserError("guidance has no branches: name one at least")
    known = spec.inputs.conditions
    nulls = [name for name, one in known.items() if one.null is not None]
    for branch in branches:
        if unknown := [name for name in branch.nulled if name not in nulls]:
            raise UserError(
                f"{branch}: {spec.name} has no null of {unknown[0]!r}; it has of: {', '.join(nulls) or 'none'}"
            )
        if unknown := [name for name in branch.negated if NEGATIVE + name not in known]:
            raise UserError(f"{branch}: {spec.name} has no negative of {unknown[0]!r}; `guided` adds those of texts")


def classifier_free(model: Denoiser, scale: float) -> tuple[Branch, Branch]:
    """S·D_c + (1 - S)·D_∅, in which texts have their negatives, and every other condition with a null has that."""
    negated = model.negated if isinstance(model, Negatable) else ()
    nulled = [
        name for name, one in model.spec.inputs.conditions.items() if one.null is not None and name not in negated
    ]
    return Branch(scale), Branch(1 - scale, tuple(nulled), negated)


def guided(model: Denoiser, scale: float, one_batch: bool = True) -> Denoiser:
    """A model with classifier-free guidance (arXiv 2207.12598, eq. 6): S·D_c + (1 - S)·D_∅.

    In D_∅ every condition with a null has its null. A condition that is a text, or that the encoder makes from a text,
    has the caller's ``negative_…`` there, by default the empty text.

    Args:
        model: the denoiser.
        scale: S; 1 is the model itself.
        one_batch: whether both answers come from one batch of twice the size, or one after the other.

    Returns:
        The guided denoiser, in evaluation mode.

    Raises:
        UserError: for a scale that is no finite number, and if no condition has a null or is a text.

    Examples:
        >>> guided = edge_sampler.guided(edge_sampler.load_model("edm-fashion-cond"), 2.0)
        >>> guided.spec.title, guided.spec.branches
        ('edm-fashion-cond, guidance 2', 2)
    """
    check_kinds({"model": model, "scale": scale}, guided)
    if not abs(scale) < float("inf"):
        raise UserError(f"guidance is {scale}; it must be a finite number")
    if any(one.text for one in model.spec.called_with.conditions.values()):
        model = Negatable(model)
    branches = classifier_free(model, scale)
    if not branches[1].nulled and not branches[1].negated:
        classes = " (its classes have no value that means none: name one by --null-class)" * bool(model.spec.classes)
        raise UserError(
            f"guidance {scale:g} needs a condition with a null, or a text, and {model.spec.name} has neither{classes}"
        )
    return Guided(model, branches, scale, one_batch).eval()
