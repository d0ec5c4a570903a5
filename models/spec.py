"""What a denoiser is, apart from the values of its weights; and its identity."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from edge_sampler.runtime.condition import CLASSES, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output


@dataclass(frozen=True)
class ModelSpec:
    """The description of a denoiser, apart from the values of its weights.

    Args:
        name: the model's name, for people.
        inputs: the shape of its data, and its conditions.
        sigma_min: the lowest noise level to sample at, in the data's units.
        sigma_max: the highest.
        licence: the licence of the weights.
        architecture: a hash of all that decides its answers, except the weights and the conditions built in.
        weights_sha256: a hash of names, shapes and float32 values, which is the same in every file format.
        random_weights: True for a model whose samples mean nothing.
        output: the output of its samplers.
        raw: the conditions that its encoder takes from the caller.
        made: the names of the conditions that its encoder makes from them.
        built_in: the conditions that are constants of the model, with their values (of arrays, a hash).
        guidance: the scale S of classifier-free guidance that is built in; 1: none.
        branches: evaluations of the network in one of the denoiser.
        schedule: its default noise levels, a name of calibration's schedules; "own" are the levels that come with the
            model.

    Raises:
        UserError: for a condition with the output's name, for an output of an axis without sizes, and for conditions
            that ``Inputs`` refuses.

    Examples:
        >>> spec = edge_sampler.built_in(edge_sampler.load_model("edm-fashion-cond"), "class_labels", 7).spec
        >>> spec.title, spec.shape, spec.classes, list(spec.called_with.conditions)
        ('edm-fashion-cond, class 7', (1, 28, 28), 0, [])
        >>> len(spec.fingerprint), spec.record()["sigma_max"], spec.varies
        (64, 80.0, False)
    """

    name: str
    inputs: Inputs
    sigma_min: float
    sigma_max: float
    licence: str
    architecture: str
    weights_sha256: str
    random_weights: bool
    output: Output
    raw: Mapping[str, Condition] = field(default_factory=dict)
    made: tuple[str, ...] = ()
    built_in: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    branches: int = 1
    schedule: str = "edm"

    def __post_init__(self) -> None:
        if self.output.name in self.called_with.conditions:
            raise UserError(f"a condition is called {self.output.name!r}, as the output is: give one another name")
        self.inputs.check_output(self.output)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample of the data, axes with names at their usual size."""
        return self.inputs.sized()

    @property
    def varies(self) -> bool:
        """Whether a call may choose a size of the data."""
        named = [self.inputs.axes[size] for size in self.inputs.shape if isinstance(size, str)]
        return any(axis.least < axis.largest for axis in named)

    @property
    def classes(self) -> int:
        """How many classes the caller may name; 0: none."""
        condition = self.inputs.conditions.get(CLASSES)
        return condition.choices if condition else 0

    @property
    def called_with(self) -> Inputs:
        """What the caller of a whole sampler gives: the encoder's inputs, and the conditions that it does not make."""
        kept = {name: one for name, one in self.inputs.conditions.items() if name not in self.made}
        return replace(self.inputs, conditions={**self.raw, **kept})

    @property
    def fingerprint(self) -> str:
        """A SHA-256 of whatever decides this denoiser's answers: what caches, plans and bundles ask."""
        facts = [self.architecture, self.weights_sha256, dict(self.built_in), self.guidance, self.branches]
        return digest([*facts, self.inputs.record(), self.sigma_min, self.sigma_max])

    @property
    def title(self) -> str:
        """The name, and what is built in: "edm-fashion-cond, class 7, guidance 2"."""
        built_in = [f"{'class' if name == CLASSES else name} {value}" for name, value in self.built_in.items()]
        built_in += [f"guidance {self.guidance:g}"] if self.guidance != 1 else []
        return ", ".join([self.name, *built_in])

    def record(self) -> dict[str, Any]:
        """JSON values, for a bundle's manifest.

        Returns:
            Each field by name, and the fingerprint.
        """
        facts = {key: getattr(self, key) for key in self.__dataclass_fields__}
        facts |= {"inputs": self.inputs.record(), "raw": {name: one.record() for name, one in self.raw.items()}}
        return facts | {"output": asdict(self.output), "fingerprint": self.fingerprint}


def check_alike(one: ModelSpec, other: ModelSpec) -> None:
    """Raises UserError where one model cannot stand for the other: of other data, conditions or noise levels."""

    def told(spec: ModelSpec) -> tuple[Any, ...]:
        named = {**spec.called_with.conditions, **spec.inputs.conditions}
        conditions = {name: (given.shape, given.dtype) for name, given in named.items()}
        return spec.inputs.shape, spec.inputs.axes, conditions, spec.sigma_min, spec.sigma_max

    if told(one) != told(other):
        raise UserError(
            f"{one.title} cannot stand for {other.title}: shape, axes, conditions and noise levels are {told(one)} and "
            f"{told(other)}"
        )


def digest(facts: Any) -> str:
    """SHA-256 of JSON values in their canonical form."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
