"""A bundle's sampler in eight bits: ranges measured, the plan refitted, layers that cost too much left out, the result
measured."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edge_sampler.export.image_error import CHECKED_VALUES, image_error, number_of_samples
from edge_sampler.export.lower import drop_unused
from edge_sampler.export.precisions import QUANTISED
from edge_sampler.export.quantise import Layer, evaluation_of, layers_of, operands, quantise, switched
from edge_sampler.export.ranges import clip_points, observe
from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.progress import bar
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import BoundError
from edge_sampler.runtime.noise import CALIBRATION_STREAM
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import feed_of
from edge_sampler.runtime.scratch import scratch

BUDGET = 0.25  # of the layers may stay out of eight bits
Refit = Callable[[Bundle, str, Mapping[str, float]], Plan]  # of a precision and its ranges
RANKED_VALUES = 1024  # that many, in 4 to 64 samples, tell which layers cost most


def write_quantised(
    bundle: Bundle,
    precision: str,
    path: Path,
    max_error: float | None = None,
    one_scale: bool = False,
    refit: Refit | None = None,
) -> dict[str, Any]:
    """Writes the sampler in one of ``QUANTISED`` to ``path``; returns what the manifest is to say of it.

    Where its images err by more than ``max_error``, layers stay as they are, those first that cost most, and no more
    than needed: ``kept`` tells them, and the error that each causes alone. With ``refit`` the graph has a plan of its
    own, which is written beside it and told by its hash; layers are left out after that.

    Raises UserError for a sampler that cannot be quantised, BoundError where the layers that may stay do not suffice.
    """
    layers = layers_of(ir.load(bundle.graph("sampler.onnx")).graph)
    largest, ranges_from = ranges_of(bundle, precision, layers, one_scale)
    exact, refitted = bundle.graph("sampler.onnx"), dict[str, Any]()
    with scratch() as folder:
        if refit is not None:
            plan, exact = refit(bundle, precision, largest), folder / "sampler.onnx"
            plan.save(path.with_name(bundle.plan_name(precision)))
            write_sampler(bundle, plan, exact)

        def write(kept: Collection[str]) -> dict[str, float]:
            model = ir.load(exact)
            quantise(model, precision, largest, kept)
            drop_unused(model.graph)
            save_checked(model, path)
            return image_error(bundle, path, optimise=True)

        with bar(f"{precision} graph", 1) as advance:
            error, kept = write(()), dict[str, float]()
            advance(1)
        if max_error is not None and not error["rms_error"] <= max_error:
            worst = effects_of(bundle, exact, precision, largest)
            most = int(BUDGET * len(layers))
            least, enough = 0, most  # so many do not suffice; so many do, if any number does
            with bar("layers to leave out", most.bit_length() + 1) as advance:
                if not (error := write(list(worst)[:most]))["rms_error"] <= max_error:
                    raise BoundError(
                        f"{precision} costs an RMS error of {error['rms_error']:.2g} even without the worst {most} of "
                        f"{len(layers)} layers, more than --max-error {max_error:g}; nothing was added"
                    )
                while enough - least > 1:
                    advance(1)
                    middle = (least + enough) // 2
                    within = write(list(worst)[:middle])["rms_error"] <= max_error
                    least, enough = (least, middle) if within else (middle, enough)
                kept = dict(list(worst.items())[:enough])
                error = write(kept)
                advance(1)
        if refit is not None:
            of_same_plan = image_error(bundle, path, optimise=True, against=exact)
            refitted = {"plan_sha256": plan.sha256, "of_same_plan": of_same_plan}
    return {
        **error,
        "one_scale": one_scale,
        "ranges_from": ranges_from,
        "layers": len(layers),
        "kept": kept,
        **refitted,
    }


def ranges_of(bundle: Bundle, precision: str, layers: Sequence[Layer], one_scale: bool) -> tuple[dict[str, float], int]:
    """What the largest number is to stand for, by value, and how many samples told it."""
    names: dict[int, dict[str, None]] = {}  # of what gets a scale, by evaluation
    for name in (str(value.name) for layer in layers for value in operands(layer, QUANTISED[precision])):
        names.setdefault(evaluation_of(name) or 0, {})[name] = None
    feed = feed_to_fit(bundle, CHECKED_VALUES)
    with bar("ranges", len(names)) as advance:
        histograms = observe(bundle, {number: list(found) for number, found in names.items()}, feed, advance)
    return clip_points(histograms, QUANTISED[precision], one_scale), len(feed["noise"])


def write_sampler(bundle: Bundle, plan: Plan, path: Path) -> None:
    """The bundle's sampler in float32, with another plan; with its own it would be sampler.onnx, to the byte."""
    stages = {name: ir.load(bundle.graph(f"{name}.onnx")) for name in ("denoiser", *bundle.manifest["stages"])}
    for stage in stages.values():
        ShapeInferencePass()(stage)  # a bundle's files leave out shapes
    encoder, decoder = stages.get("encoder"), stages.get("decoder")
    model = unroll(stages["denoiser"], plan, bundle.dtype, encoder, decoder, bundle.output.name)
    model.metadata_props.update(ir.load(bundle.graph("sampler.onnx")).metadata_props)
    model.metadata_props.update(solver=plan.solver, plan_sha256=plan.sha256)
    save_checked(model, path)


def feed_to_fit(bundle: Bundle, values: int) -> dict[str, np.ndarray]:
    """The sampler's inputs of noises that plans are fitted on, as many as have so many values, 4 to 64."""
    count = number_of_samples(bundle, values)
    examples = bundle.examples(count, held=False)
    return feed_of(bundle, range(count), examples, CALIBRATION_STREAM)


def effects_of(bundle: Bundle, exact: Path, precision: str, largest: Mapping[str, float]) -> dict[str, float]:
    """What each layer, alone in eight bits, changes in the images of the float32 graph ``exact``, by name, worst first.

    The mean of the samples' RMS differences: of their squares a few samples would decide.
    """
    feed = feed_to_fit(bundle, RANKED_VALUES)
    with scratch() as folder:
        path = folder / "switched.onnx"
        model = ir.load(exact)
        switches = switched(model, precision, largest)
        drop_unused(model.graph)
        save_checked(model, path)
        output = bundle.inner_output
        with (
            bar("effect of each layer", len(switches) + 1) as advance,
            Session(path, [output] if output != bundle.output.name else []) as session,
        ):

            def made(layer: str | None) -> np.ndarray:
                told = {switch: np.array(name == layer) for name, switch in switches.items()}
                advance(1)
                return session.run({**feed, **told})[output].astype(np.float64)

            unchanged = made(None)
            differences = {layer: (made(layer) - unchanged).reshape(len(unchanged), -1) for layer in switches}
    effects = {layer: float(np.sqrt(np.square(one).mean(1)).mean()) for layer, one in differences.items()}
    return dict(sorted(effects.items(), key=lambda item: -item[1]))
