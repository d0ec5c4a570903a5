"""A denoiser that is an ONNX graph: a bundle's denoiser.onnx, or one of anybody's. docs/your-model.md."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from edge_sampler.models.denoiser import Denoiser, null_of
from edge_sampler.models.onnx_graph import OnnxGraph, told
from edge_sampler.models.probe import check_denoiser
from edge_sampler.models.spec import ModelSpec, digest
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.condition import Axis, Condition, axis_in
from edge_sampler.runtime.errors import UserError, is_line
from edge_sampler.runtime.inputs import Inputs, Output
from edge_sampler.runtime.json_file import ODD, read_json
from edge_sampler.runtime.manifest import MANIFEST

SUFFIX, DENOISER = ".onnx", "denoiser.onnx"
SCHEDULES = ("edm", "flow")
NUMBERS, LINES = ("sigma_min", "sigma_max"), ("schedule", "licence", "output")
FACTS = (*NUMBERS, "conditions", "axes", *LINES)  # of FILE.json
OF_CONDITION = ("null", "choices", "ids", "description")
EXAMPLE = '{"sigma_min": 0.002, "sigma_max": 80}'


class OnnxDenoiser(Denoiser):
    """A graph (x float32 [n, *shape], sigma float32 [], conditions [n, …] → denoised, as x) behind the contract.

    Args:
        graph: whose hash takes the place of the weights' in the fingerprint.
        spec: what is known of it, its inputs above all.

    Raises UserError where the graph's inputs and output are not those of ``spec``.
    """

    def __init__(self, graph: OnnxGraph, spec: ModelSpec) -> None:
        super().__init__()
        self.model, self.spec = graph, replace(spec, weights_sha256=graph.sha256)
        inputs = spec.inputs
        wanted = {"x": ("float32", ("batch", *inputs.shape)), "sigma": ("float32", ())}
        wanted |= {name: (one.dtype, ("batch", *one.shape)) for name, one in inputs.conditions.items()}
        made = list(graph.outputs.values())
        if not alike(graph.inputs, wanted) or len(made) != 1 or not alike({"x": made[0]}, {"x": wanted["x"]}):
            raise UserError(
                f"{graph.path} takes {told(graph.inputs) or 'nothing'} and makes {told(graph.outputs)}; a denoiser of "
                f"{spec.name} takes {told(wanted)} and makes one value like x"
            )

    def forward(self, x: Tensor, sigma: Tensor | float, **conditions: Tensor | None) -> Tensor:
        known, count = self.spec.inputs, x.shape[0]
        if unknown := set(conditions) - set(known.conditions):
            raise TypeError(f"unknown condition {sorted(unknown)[0]!r}; known: {', '.join(known.conditions)}")
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).reshape(-1)
        given = {name: value for name, value in conditions.items() if value is not None}
        if levels.shape[0] != 1:  # the graph takes one for all
            rows = [
                {name: value if value.shape[0] == 1 else value[row : row + 1] for name, value in given.items()}
                for row in range(count)
            ]
            return torch.cat([self(x[row : row + 1], levels[row], **rows[row]) for row in range(count)])
        for name, one in known.conditions.items():
            if name not in given:
                given[name] = null_of(one, known.sized(one.shape), x.device)
            if given[name].shape[0] == 1:
                given[name] = given[name].expand(count, *given[name].shape[1:])
        values = {"x": x, "sigma": levels.reshape(()), **given}
        (denoised,) = self.model(*(values[name] for name in self.model.inputs))
        return denoised


def alike(found: Mapping[str, tuple[str, Any]], wanted: Mapping[str, tuple[str, Any]]) -> bool:
    """Whether both name the same values, of the same types and shapes; a first axis is of any size, by any name."""
    return set(found) == set(wanted) and all(
        dtype == wanted[name][0]
        and list(shape[1:]) == list(wanted[name][1][1:])
        and [isinstance(axis, str) for axis in shape[:1]] == [True] * len(wanted[name][1][:1])
        for name, (dtype, shape) in found.items()
    )


def find(model: str) -> Path | None:
    """The graph that is named by its file, or by the folder of its bundle; None where ``model`` is neither."""
    path = Path(model)
    if model in ZOO:
        return None
    if path.suffix == SUFFIX and not path.is_dir():
        return path
    return path / DENOISER if (path / MANIFEST).is_file() and any(path.glob(f"*{SUFFIX}")) else None


def load(path: Path) -> Denoiser:
    """The denoiser of a graph, described by the bundle that it is of, or by FILE.json beside FILE.onnx.

    Raises UserError for what is no denoiser's graph, where nothing describes it, and where samples change each other.
    """
    if (path.parent / MANIFEST).is_file() and not path.with_suffix(".json").is_file():
        bundle = Bundle.open(path.parent)
        if path.name == DENOISER:
            return of_bundle(bundle)
        if path.name in bundle.manifest["files"]:
            raise UserError(f"{path} is no denoiser, but another graph of that bundle: name {path.parent / DENOISER}")
    graph = OnnxGraph(path)
    model = OnnxDenoiser(graph, described(path, graph)).eval()
    check_denoiser(model)
    return model


class NotHeld:
    """Stands for a null that is an array, of which a bundle holds only that there is one."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> NoReturn:
        raise UserError(
            "a condition's value that means nothing is an array, which a bundle does not hold: build guidance in where "
            "the bundle is made"
        )


def of_bundle(bundle: Bundle) -> Denoiser:
    """The denoiser of a bundle's graph, with what its manifest tells, and the stages that are in the bundle."""

    def whole(conditions: Mapping[str, Condition]) -> dict[str, Condition]:
        """With the tokenizers, which are files of the bundle."""
        found = {}
        for name, one in conditions.items():
            text = one.text and replace(one.text, content=bundle.read(one.text.file).decode())
            found[name] = replace(one, null=NotHeld() if one.null is True else one.null, text=text)
        return found

    try:
        recorded, inputs, stages = bundle.manifest["model"], bundle.loop_inputs, bundle.manifest["stages"]
        graph = OnnxGraph(bundle.graph(DENOISER))
        kept = {one: OnnxGraph(bundle.graph(f"{one}{SUFFIX}")) for one in ("encoder", "decoder") if one in stages}
        raw = {name: Condition.read(one) for name, one in recorded["raw"].items()}
        spec = ModelSpec(
            name=str(recorded["name"]).removesuffix(SUFFIX) + SUFFIX,
            inputs=replace(inputs, conditions=whole(inputs.conditions)),
            sigma_min=float(recorded["sigma_min"]),
            sigma_max=float(recorded["sigma_max"]),
            licence=str(recorded["licence"]),
            architecture=digest([SUFFIX, {stage: one.sha256 for stage, one in kept.items()}]),
            weights_sha256="",
            random_weights=bool(recorded["random_weights"]),
            output=bundle.output,
            raw=whole(raw) if "encoder" in kept else {},
            made=tuple(recorded["made"]) if "encoder" in kept else (),
            built_in=dict(recorded["built_in"]),
            guidance=float(recorded["guidance"]),
            branches=int(recorded["branches"]),
            schedule=str(recorded["schedule"]),
        )
    except ODD as error:
        raise UserError(f"{bundle.folder / MANIFEST} is damaged: {type(error).__name__}: {error}") from error
    model = OnnxDenoiser(graph, spec)
    if "encoder" in kept:
        model.encoder = InOrder(kept["encoder"], tuple(spec.raw), spec.made)
    if "decoder" in kept:
        model.decoder = OnlyOne(kept["decoder"])
    return model.eval()


class InOrder(torch.nn.Module):
    """An encoder's graph, called with ``takes`` and making ``makes``, in these orders."""

    def __init__(self, graph: OnnxGraph, takes: tuple[str, ...], makes: tuple[str, ...]) -> None:
        super().__init__()
        self.graph, self.takes, self.makes = graph, takes, makes

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.takes, values, strict=True))
        made = dict(zip(self.graph.outputs, self.graph(*(given[name] for name in self.graph.inputs)), strict=True))
        return tuple(made[name] for name in self.makes)


class OnlyOne(torch.nn.Module):
    """A decoder's graph, of one input and one output."""

    def __init__(self, graph: OnnxGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor) -> Tensor:
        (made,) = self.graph(x)
        return made


def described(path: Path, graph: OnnxGraph) -> ModelSpec:
    """What FILE.json tells of a graph, and the graph of itself: shapes and types. Raises UserError as ``load`` does."""
    beside = path.with_suffix(".json")
    if "x" not in graph.inputs or "sigma" not in graph.inputs:
        hint = f"; that is a whole sampler: name its {DENOISER}" if "noise" in graph.inputs else ""
        raise UserError(
            f"{path} takes {told(graph.inputs) or 'nothing'}; a denoiser takes x, sigma and conditions{hint}"
        )
    try:
        facts = read_json(beside)
    except FileNotFoundError as error:
        raise UserError(
            f"the noise levels of {path} are not known: write {beside}, such as {EXAMPLE}, or name the {DENOISER} of a "
            "bundle (docs/your-model.md)"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{beside}: not a readable JSON file ({error})") from error
    if not isinstance(facts, dict) or (unknown := sorted(set(facts) - set(FACTS))):
        what = f"unknown {unknown[0]!r}" if isinstance(facts, dict) else f"it is {facts!r:.40}"
        raise UserError(f"{beside}: {what}; expected an object such as {EXAMPLE}, of {', '.join(FACTS)}")
    if missing := [key for key in NUMBERS if key not in facts]:
        raise UserError(f"{beside}: {missing[0]} is missing; expected such as {EXAMPLE}")
    for key, value in facts.items():
        if (key in NUMBERS and type(value) not in (int, float)) or (key in LINES and not is_line(value)):
            kind = "number" if key in NUMBERS else "line of text"
            raise UserError(f"{beside}: {key} is {value!r:.40}; it must be a {kind}")
    try:
        lowest, highest = float(facts["sigma_min"]), float(facts["sigma_max"])
        axes = {name: Axis.read(sizes) for name, sizes in facts.get("axes", {}).items()}
        said, schedule = dict(facts.get("conditions", {})), facts.get("schedule", SCHEDULES[0])
        conditions = {
            name: Condition(shape[1:], dtype, **said.get(name, {}))
            for name, (dtype, shape) in graph.inputs.items()
            if name not in ("x", "sigma")
        }
        shape = graph.inputs["x"][1][1:]
        inputs = Inputs(shape, conditions, axes)
        surplus = [name for name in said if name not in conditions]
        surplus += [f"{name}'s {key}" for name, one in said.items() for key in one if key not in OF_CONDITION]
    except UserError as error:
        raise UserError(f"{beside}: unusable ({error}); expected such as {EXAMPLE}") from error
    except ODD as error:
        raise UserError(f"{beside}: unusable ({type(error).__name__}: {error}); expected such as {EXAMPLE}") from error
    if surplus:
        raise UserError(
            f"{beside}: unknown {surplus[0]} among conditions; the graph has {', '.join(conditions) or 'none'}, and of "
            f"each may be told {', '.join(OF_CONDITION)}"
        )
    shapes = (shape, *(one.shape for one in conditions.values()))
    if unused := sorted(set(axes) - {axis_in(str(size))[1] for known in shapes for size in known}):
        raise UserError(f"{beside}: no shape has the axis {unused[0]!r}; the graph takes {told(graph.inputs)}")
    if not 0 < lowest < highest < math.inf:
        raise UserError(
            f"{beside}: sigma_min is {lowest:g} and sigma_max {highest:g}; they must be above 0 and in order"
        )
    if schedule not in SCHEDULES:
        raise UserError(f"{beside}: schedule is {schedule!r}; allowed: {', '.join(SCHEDULES)}")
    picture = len(shape) == 3 and shape[0] in (1, 3)
    return ModelSpec(
        name=path.name,
        inputs=inputs,
        sigma_min=lowest,
        sigma_max=highest,
        licence=facts.get("licence", "unknown"),
        architecture=digest([SUFFIX, {name: one.null for name, one in conditions.items()}]),
        weights_sha256="",
        random_weights=False,
        output=Output(facts.get("output", "images" if picture else "samples"), shape),
        schedule=schedule,
    )
