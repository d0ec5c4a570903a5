"""A model and a plan in; a bundle out."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge_sampler.calibration.check_fit import check_fit
from edge_sampler.calibration.judge import Judgement
from edge_sampler.export.canvas import OUTPUTS
from edge_sampler.export.check import check_graphs
from edge_sampler.export.fold import fold_into_weights
from edge_sampler.export.form import Form, output_of
from edge_sampler.export.ids import with_ids
from edge_sampler.export.lower import drop_unused, keep_batch_in_reshapes, lower_group_norm, transpose_keys_at_once
from edge_sampler.export.network_graph import OPSET, export_decoder, export_denoiser, export_encoder
from edge_sampler.export.pictures import draw
from edge_sampler.export.reference import write_reference
from edge_sampler.export.report_page import REPORT, report_page
from edge_sampler.export.save import INLINE_LIMIT, Beside, save_checked, weights_size
from edge_sampler.export.sign import Signer
from edge_sampler.export.unroll import unroll
from edge_sampler.models.arguments import check_kinds
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.mapped import page_out
from edge_sampler.models.probe import FEW_BITS
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.models.spec import ModelSpec
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.compare import PYTORCH, Difference, compare
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import Sampler, usual_batch
from edge_sampler.runtime.verified import WEIGHTS, describe_files

CPU = "onnxrt"  # bundles are checked by the baseline, whatever else the machine has
TOLERANCE = 1e-3  # relative; beyond it the graph computes something else
TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Graphs:
    """A model's graphs, exported from PyTorch and lowered: what takes long, and fails where a network cannot be."""

    spec: ModelSpec
    denoiser: ir.Model
    encoder: ir.Model | None
    decoder: ir.Model | None

    def of(self, form: Form) -> "Graphs":
        """Those that a sampler of this form is made of."""
        return replace(
            self, encoder=self.encoder if form.encode else None, decoder=self.decoder if form.decode else None
        )

    @property
    def stages(self) -> dict[str, ir.Model]:
        """Those before and behind the loop, by name."""
        return {name: graph for name, graph in (("encoder", self.encoder), ("decoder", self.decoder)) if graph}


@dataclass(frozen=True)
class Written:
    """The sizes of a bundle's graphs.

    Args:
        nodes: the number of nodes in the sampler's graph.
        sampler_bytes: the size of that graph, with its weights.
        denoiser_bytes: the size of the denoiser's graph, with its weights.

    Examples:
        >>> exported.graphs.sampler_bytes > 0, exported.graphs.denoiser_bytes > 0
        (True, True)
    """

    nodes: int
    sampler_bytes: int
    denoiser_bytes: int


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Args:
        folder: its path.
        graphs: the graphs' sizes.
        difference: the difference of its sampler's images from PyTorch's.

    Examples:
        >>> str(exported.folder), exported.graphs.nodes > 0, exported.difference.relative < 1e-4
        ('shrink', True, True)
    """

    folder: Path
    graphs: Written
    difference: Difference


def export_graphs(model: Denoiser) -> Graphs:
    """Exports a model's graphs. Bundles of several plans can share them. The model stays on its device.

    Args:
        model: from ``load_model`` or ``adapt``, with guidance and conditions built in as you like.

    Returns:
        The graphs, for ``export_bundle``.

    Raises:
        UserError: for a network that cannot become a graph, and for one whose graph is wrong at a size of a named axis.

    Examples:
        >>> from edge_sampler.export.assemble import export_graphs
        >>> list(export_graphs(model).stages)  # those before and behind the loop
        []
    """
    device = model.device
    model.cpu()
    try:
        denoiser, encoder, decoder = export_denoiser(model), export_encoder(model), export_decoder(model)
        for graph in (denoiser, encoder, decoder):
            if graph is not None:
                simplify(graph)
        check_graphs(model, denoiser, encoder, decoder)
    finally:
        model.to(device)
    graphs = Graphs(model.spec, denoiser, encoder, decoder)
    known_to(graphs)  # says at once what cannot be
    return graphs


def known_to(graphs: Graphs) -> ModelSpec:
    """The model's spec, with what its graphs tell of its conditions."""
    return with_ids(graphs.spec, [graphs.denoiser, *graphs.stages.values()])


def simplify(graph: ir.Model) -> None:
    """PyTorch's graph → the one that bundles are made of, in place; it computes the same."""
    lower_group_norm(graph)
    transpose_keys_at_once(graph)
    keep_batch_in_reshapes(graph)
    fold_into_weights(graph)


def export_bundle(
    model: Denoiser,
    plan: Plan,
    out: str | Path,
    form: Form = Form(),  # noqa: B008 (it cannot be changed)
    *,
    graphs: Graphs | None = None,
    judgement: Judgement | None = None,
    force: bool = False,
    sign: Signer | None = None,
    progress: ProgressBars = silent,
) -> Exported:
    """Writes a bundle, a folder with this plan for this model. On an error it writes nothing.

    Args:
        model: from ``load_model`` or ``adapt``, with guidance and conditions built in as you like.
        plan: fitted for this model, or of a fixed solver.
        out: the new folder.
        form: the graph's output type, and its stages.
        graphs: the result of ``export_graphs``, if you have it already.
        judgement: the errors of the images, from ``judge``, for the report.
        force: whether to replace an existing bundle.
        sign: a signer from ``signer``; None: no signature.
        progress: what shows how far it is: ``edge_sampler.models.progress.bar``, or by default nothing.

    Returns:
        The folder, the graphs' sizes, and the difference from PyTorch.

    Raises:
        UserError: when the plan belongs to another model, for a form that the model does not have, where ``out``
            exists, and when the graph's results differ from PyTorch's by more than 1e-3, relative.

    Examples:
        >>> edge_sampler.export_bundle(model, plan, "shrink")  # it is there already
        Traceback (most recent call last):
        edge_sampler.runtime.errors.UserError: shrink exists; choose another place, or add --force
    """
    check_kinds({"model": model, "plan": plan, "form": form}, export_bundle)
    check_fit(model, plan)
    spec, output = model.spec, output_of(model, form)
    with progress("export", 4) as advance, writable(Path(out), force, "bundle") as folder:
        folder.mkdir()
        graphs = (graphs or export_graphs(model)).of(form)
        advance(1)
        plan.save(folder / "plan.json")
        written = write_graphs(graphs, plan, folder, form.dtype, output.name)
        advance(1)
        stages = list(graphs.stages)
        known = known_to(graphs)
        inputs = known.called_with if "encoder" in stages else known.inputs
        for one in inputs.conditions.values():
            if one.text:
                (folder / one.text.file).write_text(one.text.content, encoding="utf-8")
        write_reference(model, plan, folder, form.dtype, stages, output)
        facts: dict[str, Any] = {
            "model": known.record() | {"fingerprint": spec.fingerprint},
            "inputs": inputs.record(),
            "output": asdict(output),
            "dtype": form.dtype,
            "stages": stages,
            "solver": plan.solver,
            "nfe": plan.nfe,
            "plan_sha256": plan.sha256,
            "opset": OPSET,
            "precision": "float32",
            "tools": {tool: importlib.metadata.version(tool) for tool in TOOLS} | {"python": platform.python_version()},
            **({"temperature": plan.temperature} if plan.temperature != 1 else {}),
            **({"judged": judgement.record()} if judgement else {}),
        }
        bundle = Bundle(folder, {**facts, "files": describe_files(folder)})
        for module in (model, model.encoder, model.decoder):
            if module is not None:
                page_out(module)  # PyTorch has done its part
        few = any(one.is_floating_point() and one.itemsize < 4 for one in model.parameters())
        differences = parity(bundle, FEW_BITS if few else TOLERANCE)
        facts["parity"] = [{"stage": one.stage, "largest": one.max, "rms": one.rms} for one in differences]
        advance(1)
        write_samples(bundle, form.samples)
        shown = Bundle(Path(Path(out).name), {**facts, "files": describe_files(folder)})
        (folder / REPORT).write_text(report_page(shown, folder), encoding="utf-8")
        write_manifest(folder / MANIFEST, facts, describe_files(folder))
        if sign:
            sign(folder)
        advance(1)
    return Exported(Path(out), written, differences[-1])


def write_graphs(graphs: Graphs, plan: Plan, folder: Path, dtype: str = OUTPUTS[0], output: str = "images") -> Written:
    """The sampler's graph and those of the baseline, checked. They share a file of weights where those are large."""
    sampler, spec = unroll(graphs.denoiser, plan, dtype, graphs.encoder, graphs.decoder, output), graphs.spec
    sampler.metadata_props.update(
        solver=plan.solver,
        nfe=str(plan.nfe),
        plan_sha256=plan.sha256,
        fingerprint=spec.fingerprint,
        random_weights=str(spec.random_weights),
    )
    beside = Beside(folder / WEIGHTS) if weights_size(sampler) > INLINE_LIMIT else None
    for name, graph in graphs.stages.items():
        save_checked(without_unused(graph), folder / f"{name}.onnx", beside=beside)
    denoiser_bytes = save_checked(without_unused(graphs.denoiser), folder / "denoiser.onnx", beside=beside)
    sampler_bytes = save_checked(sampler, folder / "sampler.onnx", beside=beside)
    return Written(len(sampler.graph), sampler_bytes, denoiser_bytes)


def without_unused(model: ir.Model) -> ir.Model:
    """A copy with the weights shared: ``drop_unused`` forgets shapes, which drawing another sampler asks for."""
    copy = model.clone()
    drop_unused(copy.graph)
    return copy


def write_samples(bundle: Bundle, count: int) -> None:
    """samples.png, made by sampler.onnx in ONNX Runtime with the bundle's examples of conditions.

    Raises UserError where the first sample of a batch, or its last, is another one alone.
    """
    seeds, batch = range(max(2, count)), max(2, min(16, usual_batch(bundle.inputs.sized())))
    examples: dict[str, Any] = {**bundle.examples(len(seeds))}
    with Sampler(bundle, CPU) as sampler:
        made = sampler.sample(seeds, batch, **examples)
        for seed in (0, min(batch, len(seeds)) - 1):
            given: dict[str, Any] = {name: values[seed : seed + 1] for name, values in examples.items()}
            alone = sampler.sample([seed], 1, **given)[0].astype(float)
            if np.abs(alone - made[seed]).max() > max(FEW_BITS * np.abs(alone).max(), bundle.dtype == "uint8"):
                raise UserError(
                    f"{bundle.manifest['model']['name']} makes another sample of a seed alone than beside others: no "
                    "answer may depend on the other samples of a batch, at whatever noise level"
                )
    draw(made[:count], bundle, bundle.folder / "samples.png")


def parity(bundle: Bundle, allowed: float) -> list[Difference]:
    """The differences between sampler.onnx and PyTorch: of each evaluation, and last of what is made.

    Raises UserError when that is more than ``allowed``, relative.
    """
    found = [one for one in compare(bundle, backends=[CPU]) if (one.first, one.second) == (CPU, PYTORCH)]
    last = found[-1]
    if not last.finite or last.relative > allowed:
        raise UserError(
            f"sampler.onnx differs from PyTorch by {last.relative:.1e} relative, more than {allowed:g}; "
            "no bundle was written"
        )
    return found
