"""Makes a denoiser from a user's own network (``adapt``). docs/your-model.md shows how."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn
from torch.nn.parameter import is_lazy

from edge_sampler.models.arguments import check_kinds, check_plain, preconditioning_of
from edge_sampler.models.checkpoint import weights_sha256
from edge_sampler.models.denoiser import Denoiser, Preconditioned, Seen
from edge_sampler.models.examples import STREAM, Examples, made_by
from edge_sampler.models.precond import PRECONDITIONINGS, Preconditioning
from edge_sampler.models.probe import check_denoiser, drawn, probe, try_extremes
from edge_sampler.models.source_code import code_of
from edge_sampler.models.spec import digest
from edge_sampler.models.unchanged import kinds_of, numbers_of, parameters_of
from edge_sampler.runtime.condition import CLASSES, Axis, Condition, class_labels
from edge_sampler.runtime.errors import UserError, is_line
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.text import tokenized


@dataclass(frozen=True)
class Encoder:
    """A stage before the loop, which makes conditions from the caller's inputs.

    Args:
        module: ``module(*inputs)`` returns a tuple of tensors [n, …]: the conditions that ``makes`` names.
        inputs: the caller's inputs by name, in the order of the module's arguments.
        makes: the names of the network's conditions that the module returns, in order.

    Raises:
        UserError: for an argument of another type.

    Examples:
        >>> class Features(torch.nn.Module):
        ...     def forward(self, observation):
        ...         return (observation.repeat(1, 16),)
        >>> encoder = edge_sampler.Encoder(Features(), {"observation": edge_sampler.Condition((4,))}, ("features",))
        >>> [made.shape for made in encoder.module(torch.zeros(2, 4))]
        [torch.Size([2, 64])]
    """

    module: nn.Module
    inputs: Mapping[str, Condition]
    makes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_kinds(vars(self), Encoder)


@dataclass(frozen=True)
class Decoder:
    """A stage after the loop, which makes the caller's result from the samples.

    Args:
        module: ``module(x)`` takes x [n, *shape] and returns [n, …] with ``output``'s shape.
        output: the name, shape and unit of the result.

    Raises:
        UserError: for an argument of another type.

    Examples:
        >>> decoder = edge_sampler.Decoder(torch.nn.Flatten(), edge_sampler.Output("rows", (64,)))
        >>> edge_sampler.adapt(Shrink(), (1, 8, 8), decoder=decoder).spec.output.name
        'rows'
    """

    module: nn.Module
    output: Output

    def __post_init__(self) -> None:
        check_kinds(vars(self), Decoder)


def adapt(
    network: nn.Module,
    shape: Sequence[int | str],
    precond: str = "Denoised",
    classes: int = 0,
    licence: str = "unknown",
    *,
    conditions: Mapping[str, Condition] | None = None,
    axes: Mapping[str, Sequence[int]] | None = None,
    examples: Examples | None = None,
    encoder: Encoder | None = None,
    decoder: Decoder | None = None,
    output: str | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    **arguments: Any,
) -> Denoiser:
    """Makes a denoiser from a trained network: D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise), arXiv 2206.00364, eq. 7.

    Args:
        network: called as ``network(x, noise, **conditions)``. ``precond`` scales x, float32 [n, *shape], and turns the
            noise level into noise, float32 [n or 1]. Conditions come by name, [n or 1, …]. With ``classes``, the third
            argument is one-hot rows, float32 [n or 1, classes]; a row of zeros means "no class". The network returns
            the prediction that ``precond`` names, shaped as x.
        shape: the shape of one sample, such as (3, 32, 32) or ("length", 80). A name is an axis whose size each call
            chooses.
        precond: a name of ``PRECONDITIONINGS``: "Denoised" for a network of (x, σ) that predicts clean
            images, "DDPMPrecond" for one of (x, t) in discrete steps, "FlowPrecond" for rectified flow, and EDM's.
        classes: how many classes the network knows; 0: none.
        licence: the licence of the weights, for bundles and their reports.
        conditions: the network's other inputs, which stay the same at every evaluation.
        axes: for each name in a shape, its smallest, usual and largest size, and the step that sizes are multiples of,
            where there is one: (16, 64, 512) or (16, 64, 512, 8).
        examples: values of the caller's inputs, to fit and to judge on: arrays [rows, …] by name, or a function from a
            list of seeds, whole numbers from 0 on, to such arrays. For a text condition, a list of texts.
        encoder: a stage before the loop, which becomes part of the sampler's graph.
        decoder: a stage after the loop, which becomes part of it too.
        output: the name of the samples, if there is no decoder; by default "images" for pictures [1 or 3, H, W], else
            "samples".
        sigma_min: the lowest noise level that the network knows; None: that of ``precond``.
        sigma_max: the highest; None: that of ``precond``.
        arguments: arguments of that preconditioning.

    Returns:
        The denoiser, in evaluation mode. The network is part of it, and gets no gradients any more.

    Raises:
        UserError: for an unknown preconditioning or argument, for one of another type, for examples that do not fit, if
            the network or a stage returns a wrong shape, and if an answer depends on the other samples of its batch.

    Examples:
        >>> class Still(torch.nn.Module):  # a flow that predicts no motion
        ...     def forward(self, x, t, mask):
        ...         return 0 * x * mask
        >>> still = edge_sampler.adapt(
        ...     Still(),
        ...     shape=("length", 80),
        ...     precond="FlowPrecond",
        ...     axes={"length": (16, 64, 512)},
        ...     conditions={"mask": edge_sampler.Condition(("length", 1))},
        ...     examples={"mask": np.ones((8, 64, 1), np.float32)},
        ...     num_train_timesteps=1,
        ... )
        >>> still.spec.shape, still.spec.schedule
        ((64, 80), 'flow')
    """
    check_kinds({"network": network, "classes": classes, "conditions": conditions, "axes": axes}, adapt)
    check_kinds({"encoder": encoder, "decoder": decoder, "sigma_min": sigma_min, "sigma_max": sigma_max}, adapt)
    if empty := [name for name, one in network.named_parameters() if is_lazy(one) or one.is_meta]:
        raise UserError(f"{type(network).__name__}.{empty[0]} has no values: load weights, or run the network once")
    try:
        check_plain(int(classes), "classes")
    except ValueError as error:
        raise UserError(str(error)) from error
    if not is_line(licence):
        raise UserError(f"licence is {licence!r:.40}; it must be a line of text")
    if CLASSES in (conditions or {}):
        raise UserError(f"{CLASSES} is what classes=K makes, rows in third place: give the condition another name")
    preconditioning = preconditioned(precond, arguments, sigma_min, sigma_max)
    sizes = {name: Axis.read(sizes) for name, sizes in (axes or {}).items()}
    if isinstance(shape, str) or not isinstance(shape, Sequence | np.ndarray) or not len(shape):
        raise UserError(f"shape is {shape!r:.40}; it must be a tuple of sizes, such as (144,) or (3, 32, 32)")
    plain = tuple(int(size) if isinstance(size, np.integer) else size for size in shape)
    inputs = Inputs(plain, {**class_labels(int(classes)), **(conditions or {})}, sizes)
    model, name = Preconditioned(network, preconditioning, inputs), type(network).__name__
    made = Output("samples" if output is None else output, inputs.shape)
    if output is None and made.is_image:
        made = replace(made, name="images")
    weights = weights_sha256(model.state_dict())
    nulls = {key: np.asarray(one.null).tolist() for key, one in inputs.conditions.items()}
    stages = [stage.module for stage in (encoder, decoder) if stage]
    model.describe(name, licence, weights, [], output=decoder.output if decoder else made)
    if encoder:
        unknown = sorted(set(encoder.makes) - set(inputs.conditions))
        if unknown:
            raise UserError(
                f"the encoder makes {unknown[0]!r}; the network's conditions are {', '.join(inputs.conditions)}"
            )
        model.encoder = encoder.module.eval().requires_grad_(False)
        model.spec = replace(model.spec, raw=encoder.inputs, made=encoder.makes)
    if decoder:
        model.decoder = decoder.module.eval().requires_grad_(False)
    if examples is not None:
        give_examples(model, examples)
    asked = drawn(model)
    answers = probe(model, asked)
    weights_of_stages = [weights_sha256(stage.state_dict()) for stage in stages]
    few_digits = [float(f"{figure:.1e}") for figure in answers]  # so that machines agree
    code = [code_of(network, *stages), *map(numbers_of, [network, *stages])]  # once it has run: some make tables then
    facts = [code, precond, arguments, nulls, few_digits, weights_of_stages]
    facts += [kinds] if (kinds := kinds_of(model)) else []
    model.spec = replace(model.spec, architecture=digest(facts))
    model.seen = Seen(parameters_of(model), asked, answers)
    return model


def preconditioned(
    precond: str, arguments: Mapping[str, Any], sigma_min: float | None, sigma_max: float | None
) -> Preconditioning:
    """The one of that name, between its own noise levels or those that are told. Raises UserError as ``adapt`` does."""
    if precond not in PRECONDITIONINGS:
        raise UserError(f"precond is {precond!r}; allowed: {', '.join(PRECONDITIONINGS)}")
    known = inspect.signature(PRECONDITIONINGS[precond]).parameters
    if unknown := [name for name in arguments if name not in known]:
        raise UserError(f"{precond} has no argument {unknown[0]}; it has {', '.join(known) or 'none'}")
    try:
        made = preconditioning_of(precond, arguments)
        lowest, highest = made.sigma_range
        limits = float(lowest if sigma_min is None else sigma_min), float(highest if sigma_max is None else sigma_max)
    except (TypeError, ValueError) as error:
        raise UserError(f"{precond}: {error}") from error
    except ArithmeticError as error:  # which names no argument
        told = {**arguments, "sigma_min": sigma_min, "sigma_max": sigma_max}
        given = ", ".join(f"{name}={value!r:.40}" for name, value in told.items() if value is not None)
        raise UserError(f"{precond} with {given}: {error}") from error
    if not 0 < limits[0] < limits[1] < math.inf:
        raise UserError(f"sigma_min is {limits[0]:g} and sigma_max {limits[1]:g}; they must be above 0 and in order")
    known_lowest, known_highest = made.sigma_limits
    if limits[0] < 0.999 * known_lowest or limits[1] > 1.001 * known_highest:
        raise UserError(
            f"sigma_min is {limits[0]:g} and sigma_max {limits[1]:g}; {precond} knows {known_lowest:.4g} to "
            f"{known_highest:.4g}"
        )
    return replace(made, sampled=limits, sigma_limits=limits)


def with_examples(model: Denoiser, examples: Examples) -> None:
    """Gives a model examples of its conditions, to fit and to judge on.

    Args:
        model: the denoiser. The function changes it.
        examples: arrays [rows, …] by name; for a text condition, texts or token ids. Or a function from a list of seeds
            to arrays [seeds, …]; for a text condition, token ids.

    Raises:
        UserError: if they do not fit the model's conditions, or have different numbers of rows; if the model fails for
            them, and if its answer depends on the other samples of a batch.

    Examples:
        >>> pinned = edge_sampler.Pinned(model)
        >>> rows = np.zeros((8, 1, 8, 8), np.float32)
        >>> edge_sampler.with_examples(pinned, {"known": rows, "known_mask": rows})
        >>> edge_sampler.fit(pinned, nfe=2, solver="ddim").nfe
        2
    """
    give_examples(model, examples)
    try_extremes(model)
    check_denoiser(model)


def give_examples(model: Denoiser, examples: Examples) -> None:
    """The same, for a model that is not asked what it answers: it will be, or others have."""
    wanted = model.spec.called_with
    made = made_by(examples, [0, 4 * STREAM - 1]) if callable(examples) else examples
    if not isinstance(made, Mapping):
        raise UserError(f"examples are of type {type(made).__name__}: give arrays by name, or a function of seeds")
    defaults = tokenized(wanted.conditions, {})
    named = {
        key: one for key, one in wanted.conditions.items() if not one.choices and (key in made or key not in defaults)
    }
    if chosen := [key for key in made if key in wanted.conditions and wanted.conditions[key].choices]:
        raise UserError(f"{chosen[0]} takes no examples: each of its {wanted.conditions[chosen[0]].choices} is drawn")
    found = tokenized(named, made)
    counts = {key: len(np.asarray(value)) for key, value in found.items() if np.ndim(value)}
    if len(set(counts.values())) > 1 or len(counts) != len(found) or not counts:
        told = ", ".join(f"{key} {list(np.shape(value))}" for key, value in found.items())
        raise UserError(f"examples must be [rows, …] each, and of as many rows: {told or 'there are none'}")
    rows = next(iter(counts.values()))
    if rows < 1:
        raise UserError("there are no examples: give at least one row")
    replace(wanted, conditions=named).check(found, rows)
    model.examples = examples if callable(examples) else found
