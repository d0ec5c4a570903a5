"""A model and a plan in; a bundle out."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge_sampler.calibration.judge import Judgement
from edge_sampler.export.canvas import OUTPUTS
from edge_sampler.export.lower import drop_unused, keep_batch_in_reshapes, lower_group_norm, transpose_keys_at_once
from edge_sampler.export.network_graph import OPSET, export_decoder, export_denoiser, export_encoder
from edge_sampler.export.pictures import draw
from edge_sampler.export.reference import write_reference
from edge_sampler.export.report_page import REPORT, report_page
from edge_sampler.export.save import INLINE_LIMIT, Beside, save_checked, weights_size
from edge_sampler.export.sign import Signer
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser, ModelSpec
from edge_sampler.models.mapped import page_out
from edge_sampler.models.progress import ProgressBars, silent
from edge_sampler.runtime.bundle import (
    WEIGHTS,
    Bundle,
    describe_files,
)
from edge_sampler.runtime.compare import PYTORCH, Difference, compare
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.inputs import Output
from edge_sampler.runtime.manifest import MANIFEST, write_manifest
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.plan import Plan
from edge_sampler.runtime.sampler import Sampler, usual_batch

CPU = "onnxrt"  # bundles are checked by the baseline, whatever else the machine has
TOLERANCE = 1e-3  # relative; beyond it the graph computes something else
TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Form:
    """How a bundle's graph is to be.

    Args:
        dtype: of what it makes: float32, or uint8 [batch, H, W, C] for pictures.
        samples: how many are drawn in samples.png.
        encode, decode: whether the model's stages are part of it; else the caller makes and takes what stands between.
    """

    dtype: str = OUTPUTS[0]
    samples: int = 16
    encode: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in OUTPUTS or self.samples < 1:
            raise UserError(
                f"output is {self.dtype!r} and samples {self.samples}; allowed: {', '.join(OUTPUTS)}, and 1 or more"
            )


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
    """Nodes of the sampler's graph, and bytes of it and of the denoiser's, with their weights."""

    nodes: int
    sampler_bytes: int
    denoiser_bytes: int


@dataclass(frozen=True)
class Exported:
    """A bundle that was written, and how far its sampler is from PyTorch's."""

    folder: Path
    graphs: Written
    difference: Difference


def export_graphs(model: Denoiser) -> Graphs:
    """The model's graphs; it stays on its device. Raises UserError for a network that no graph can hold."""
    device = model.device
    model.cpu()
    denoiser, encoder, decoder = export_denoiser(model), export_encoder(model), export_decoder(model)
    model.to(device)
    for graph in (denoiser, encoder, decoder):
        if graph is not None:
            lower_group_norm(graph)
            transpose_keys_at_once(graph)
            keep_batch_in_reshapes(graph)
    return Graphs(model.spec, denoiser, encoder, decoder)


def export_bundle(
    model: Denoiser,
    plan: Plan,
    out: str | Path,
    form: Form = Form(),
    *,
    graphs: Graphs | None = None,
    judgement: Judgement | None = None,
    force: bool = False,
    sign: Signer | None = None,
    progress: ProgressBars = silent,
) -> Exported:
    """Writes the bundle of this plan for this model: a folder, whole or not there.

    Args:
        model: as ``load_model`` or ``adapt`` returns it, with what is built in.
        plan: fitted for this very model, or of a fixed solver.
        out: the folder; replaced with ``force``.
        graphs: of ``export_graphs``, where they are there already.
        judgement: how good the images are, for the report.
        sign: of ``signer``, what signs it.

    Raises UserError when the plan belongs to another model, for a form that the model does not have, where ``out``
    exists, and when the graph's results differ from PyTorch's.
    """
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
        inputs = spec.called_with if "encoder" in stages else spec.inputs
        for one in inputs.conditions.values():
            if one.text:
                (folder / one.text.file).write_text(one.text.content, encoding="utf-8")
        write_reference(model, plan, folder, form.dtype, stages, output)
        facts: dict[str, Any] = {
            "model": spec.record(),
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
            **({"judged": judgement.record()} if judgement else {}),
        }
        bundle = Bundle(folder, {**facts, "files": describe_files(folder)})
        for module in (model, model.encoder, model.decoder):
            if module is not None:
                page_out(module)  # PyTorch has done its part
        differences = parity(bundle)
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


def check_fit(model: Denoiser, plan: Plan) -> None:
    """Raises UserError where the plan was fitted to another model, or its mean is of other data."""
    spec, report = model.spec, plan.report
    if report and report.fingerprint != spec.fingerprint:
        raise UserError(
            f"the plan was fitted to {report.model}, fingerprint {report.fingerprint[:12]}, and this is {spec.title}, "
            f"fingerprint {spec.fingerprint[:12]}: fit it again"
        )
    if plan.afs and np.shape(plan.mean) != spec.shape:
        raise UserError(f"the plan has a mean of {np.shape(plan.mean)} for data of {spec.shape}: fit it again")
    if max(plan.sigmas) > spec.sigma_max * 1.001 or (not report and min(plan.sigmas) < spec.sigma_min * 0.999):
        raise UserError(
            f"the plan's noise levels, {max(plan.sigmas):.4g} to {min(plan.sigmas):.4g}, leave those of {spec.title}, "
            f"{spec.sigma_max:.4g} to {spec.sigma_min:.4g}: fit it again"
        )


def output_of(model: Denoiser, form: Form) -> Output:
    """What a sampler of this form makes. Raises UserError where it cannot be as ``form.dtype`` says."""
    bare = model.decoder is not None and not form.decode
    output = Output("samples", model.spec.inputs.shape, "the decoder's input") if bare else model.spec.output
    if form.dtype == "uint8" and not output.is_image:
        raise UserError(f"output uint8 is for pictures of 1 or 3 channels; {model.spec.name} makes {output.name}")
    return output


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
    """samples.png, made by sampler.onnx in ONNX Runtime with the bundle's examples of conditions."""
    with Sampler(bundle, CPU) as sampler:
        batch = min(16, usual_batch(bundle.inputs.sized()))
        made = sampler.sample(range(count), batch, 1.0, **bundle.examples(count))
    draw(made, bundle, bundle.folder / "samples.png")


def parity(bundle: Bundle) -> list[Difference]:
    """The differences between sampler.onnx and PyTorch: of each evaluation, and last of what is made.

    Raises UserError when that is beyond ``TOLERANCE``.
    """
    found = [one for one in compare(bundle, backends=[CPU]) if (one.first, one.second) == (CPU, PYTORCH)]
    last = found[-1]
    if not last.finite or last.relative > TOLERANCE:
        raise UserError(
            f"sampler.onnx differs from PyTorch by {last.relative:.1e} relative, more than {TOLERANCE:g}; "
            "no bundle was written"
        )
    return found
