"""The denoiser contract: every model of this project is called as ``denoised = model(x, sigma, **conditions)``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_sampler.models.examples import HELD, STREAM, Examples, made_by
from edge_sampler.models.precond import Preconditioning
from edge_sampler.models.spec import ModelSpec, digest
from edge_sampler.runtime.condition import CLASSES, Condition
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.text import tokenized

torch.backends.mha.set_fastpath_enabled(False)  # it makes hidden places 0, and what is exported does not

Levels = Callable[[int], list[float]]  # so many noise levels, from the highest down, then 0


class Denoiser(nn.Module):
    """A model, as all parts of this project call it: ``denoised = model(x, sigma, **conditions)``.

    It is D(x; σ) of arXiv 2206.00364, eq. 2 and 3. A call has:

    - ``x``: noisy data, float32 [n, *shape];
    - ``sigma``: the noise level, a standard deviation in the data's units; a number, a scalar tensor, or [n];
    - ``conditions``: by name, each [n, …] or [1, …]. A missing condition has its null;
    - the result: the expected clean data, float32, shaped as x.

    ``encoder`` runs before the loop, and ``decoder`` after it: ``encoder(*raw)`` returns conditions by name, and
    ``decoder(x)`` returns a sampler's output. A fit works between them. ``examples`` are values of the caller's inputs,
    to fit and to judge on: rows by name, or a function of seeds. ``own_levels`` are the noise levels at which the
    model's authors evaluate it, if they are known. ``spec``, a ``ModelSpec``, describes the model.

    Examples:
        >>> x = torch.randn(2, 1, 8, 8)
        >>> model(x, 1.0).shape, bool((model(x, 1.0) == x / 2).all())
        (torch.Size([2, 1, 8, 8]), True)
        >>> told = edge_sampler.load_model("edm-fashion-cond")
        >>> told.device, told.outside_bytes
        (device(type='cpu'), 0)
        >>> drawn = told.draw_raw([0, 1])
        >>> drawn["class_labels"].shape, told.encode(drawn)["class_labels"].dtype
        ((2,), torch.int64)
        >>> told.examples = {"class_labels": np.arange(8)}  # the last quarter is held out
        >>> told.rows(False), told.rows(True), told.decode(x) is x
        ((0, 6), (6, 8), True)
    """

    spec: ModelSpec

    def __init__(self) -> None:
        super().__init__()
        self.encoder: nn.Module | None = None
        self.decoder: nn.Module | None = None
        self.examples: Examples = {}
        self.own_levels: Levels | None = None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters(), torch.empty(0)).device

    @property
    def outside_bytes(self) -> int:
        """What one sample takes in memory where PyTorch does not see it, in runs of ONNX graphs; 0 before the first."""
        return sum(getattr(one, "sample_bytes", 0) for one in self.modules())

    def draw_raw(self, seeds: Sequence[int], stream: int = 0, held: bool | None = None) -> dict[str, np.ndarray]:
        """A value of each condition for each seed, as a caller gives them: [n, …].

        A seed's values are the same in any set of seeds. A text with a default needs no examples.

        Args:
            seeds: whole numbers, 0 or above.
            stream: another number draws other values of the same seeds.
            held: which of the model's examples: those to fit on (False), the others (True), or any (None).

        Returns:
            By name, [n, …].

        Raises:
            UserError: where a condition has no examples.
        """
        wanted = self.spec.called_with.conditions
        rngs = [np.random.default_rng([stream, seed]) for seed in seeds]
        own = () if callable(self.examples) else self.examples
        defaults = {name: value for name, value in tokenized(wanted, {}).items() if name not in own}
        drawn = {name: np.stack([value] * len(seeds)) for name, value in defaults.items()}
        named = {name: one for name, one in wanted.items() if not one.choices and name not in drawn}
        for name, one in wanted.items():
            if one.choices:
                shape = self.spec.called_with.sized(one.shape)
                drawn[name] = np.array([rng.integers(one.choices, size=shape) for rng in rngs], np.int64)
        if named:
            drawn |= self._examples([seed + stream * STREAM for seed in seeds], rngs, held, tuple(named))
        return drawn

    def _examples(
        self, seeds: Sequence[int], rngs: Sequence[np.random.Generator], held: bool | None, names: tuple[str, ...]
    ) -> Mapping[str, np.ndarray]:
        if callable(self.examples):
            made = made_by(self.examples, list(seeds))
            self._have(names, made)
            return {name: np.asarray(made[name]) for name in names}
        self._have(names, self.examples)
        first, last = self.rows(held)
        rows = [int(rng.integers(first, last)) for rng in rngs]
        return {name: np.asarray(self.examples[name])[rows] for name in names}

    def _have(self, names: tuple[str, ...], found: Mapping[str, Any]) -> None:
        if missing := [name for name in names if name not in found]:
            text = self.spec.called_with.conditions[missing[0]].text
            or_prompts = ", or --prompts FILE.txt, one text a line" if text else ""
            raise UserError(
                f"{self.spec.name} has no examples of its condition {missing[0]}, which a fit and a check need: give "
                f"--conditions FILE.npz with {', '.join(names)}, [rows, …] each{or_prompts} (in Python: examples=…)"
            )

    def rows(self, held: bool | None) -> tuple[int, int]:
        """Which of the examples fit, and which are held out; examples that are arrays, that is.

        Args:
            held: those to fit on (False), to hold out (True), or all (None).

        Returns:
            The first, and the one behind the last.
        """
        assert not callable(self.examples)
        count = len(next(iter(self.examples.values())))
        fitted = count - count // HELD
        if held is None or count < HELD:
            return 0, count
        return (fitted, count) if held else (0, fitted)

    def encode(self, raw: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The denoiser's own conditions, on its device, of those that a caller gives.

        Args:
            raw: by name, [n, …], as ``spec.called_with`` says.

        Returns:
            By name, [n, …], as ``spec.inputs`` says.

        Raises:
            UserError: if the encoder returns no tuple of as many as it should make, or one of another dtype, or of
                another number of rows.
        """
        told = {name: torch.from_numpy(np.array(value)).to(self.device) for name, value in raw.items()}
        if self.encoder is not None:
            with torch.inference_mode():
                made = self.encoder(*(told.pop(name) for name in self.spec.raw))
            if not isinstance(made, tuple | list) or len(made) != len(self.spec.made):
                got = f"{len(made)} values" if isinstance(made, tuple | list) else f"a {type(made).__name__}"
                wanted = ", ".join(self.spec.made)
                raise UserError(f"{self.spec.name}'s encoder returned {got}; it should return a tuple of: {wanted}")
            for name, value in zip(self.spec.made, made, strict=True):
                told[name] = self._made(name, value, len(next(iter(raw.values()))))
        return {name: told[name] for name in self.spec.inputs.conditions}

    def _made(self, name: str, value: Any, rows: int) -> Tensor:
        wanted, got = f"torch.{self.spec.inputs.conditions[name].dtype}", type(value).__name__
        if isinstance(value, Tensor):
            got = f"{value.dtype} {list(value.shape)}"
            if value.dim() and (str(value.dtype), len(value)) == (wanted, rows):
                return value
        raise UserError(
            f"{self.spec.name}'s encoder made {name} as {got}; it should be {wanted} [{rows}, …], a row for each sample"
        )

    def decode(self, x: Tensor) -> Tensor:
        """What a sampler makes of its last state.

        Args:
            x: states [n, *shape].

        Returns:
            What the decoder makes of them, [n, …] of ``spec.output``'s shape; without a decoder x itself.
        """
        if self.decoder is None:
            return x
        with torch.inference_mode():
            return self.decoder(x)


@dataclass(frozen=True)
class Seen:
    """A user's network as it was once: a hash of its parameters and parts, and what it answered to what."""

    parameters: str
    asked: tuple[list[dict[str, np.ndarray]], dict[str, int]]
    answers: list[float]


class Preconditioned(Denoiser):
    """A raw network behind the contract: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise).

    ``network(x, c_noise, **conditions)`` gets c_noise [n or 1]. Classes come as one-hot rows [n or 1, classes] in third
    place, zeros being "no class". Of twice as many channels as x has (learned variances) the first half is taken.
    """

    def __init__(self, network: nn.Module, preconditioning: Preconditioning, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.preconditioning, self.inputs = network, preconditioning, inputs
        self.seen: Seen | None = None  # of a user's network: what ``adapt`` saw
        condition = inputs.conditions.get(CLASSES)
        self.classes = condition.choices if condition else 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inputs.sized()

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        c = self.preconditioning.coefficients(sigma)
        places, names = self.told(conditions, x.device)
        predicted = self.model(per_sample(c.c_in, x) * x, c.c_noise.clone(), *places, **names)  # it may write into both
        if predicted.shape[1] == 2 * x.shape[1]:
            predicted = predicted[:, : x.shape[1]]
        return per_sample(c.c_skip, x) * x + per_sample(c.c_out, x) * predicted

    def told(
        self, conditions: Mapping[str, Tensor | None], device: torch.device
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The conditions as the network takes them: classes by place, the others by name."""
        if unknown := set(conditions) - set(self.inputs.conditions):
            raise TypeError(f"unknown condition {sorted(unknown)[0]!r}; known: {', '.join(self.inputs.conditions)}")
        inputs, names = self.inputs, dict[str, Tensor]()
        for name, condition in inputs.conditions.items():
            value = conditions.get(name)
            names[name] = null_of(condition, inputs.sized(condition.shape), device) if value is None else value
        labels = names.pop(CLASSES, None)
        if labels is None:
            return [], names
        return [(labels[:, None] == torch.arange(self.classes, device=device)).float()], names

    def describe(
        self,
        name: str,
        licence: str,
        weights_sha256: str,
        architecture: Any,
        random_weights: bool = False,
        output: Output | None = None,
    ) -> "Preconditioned":
        """Itself, ready to use: in evaluation mode, with its ``spec``. ``architecture``: JSON values, its identity."""
        lowest, highest = self.preconditioning.sigma_range
        self.spec = ModelSpec(
            name=name,
            inputs=self.inputs,
            sigma_min=lowest,
            sigma_max=highest,
            licence=licence,
            architecture=digest(architecture),
            weights_sha256=weights_sha256,
            random_weights=random_weights,
            output=output or Output(shape=self.inputs.shape),
            schedule=self.preconditioning.schedule,
        )
        return self.eval().requires_grad_(False)


def null_of(condition: Condition, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """[1, *shape] of the value that means "nothing". Raises UserError where the condition has none."""
    if condition.null is None:
        raise UserError(f"a condition of {condition.wanted()} is missing, and has no value that means nothing")
    value = torch.as_tensor(np.asarray(condition.null)).to(device, getattr(torch, condition.dtype))
    return value.expand(1, *shape)


def per_sample(value: Tensor | float, x: Tensor) -> Tensor | float:
    """[n] → [n, 1, …], to multiply samples with."""
    return value if isinstance(value, float) else value.reshape(-1, *(1 for _ in x.shape[1:]))
