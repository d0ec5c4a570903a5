"""A model and a plan in; a bundle's files out."""

import importlib.metadata
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_sampler.calibration.evaluate.network import Network
from edge_sampler.export.lower import drop_unused, keep_batch_in_reshapes, lower_group_norm
from edge_sampler.export.network_graph import OPSET, export_denoiser
from edge_sampler.export.save import save_checked
from edge_sampler.export.unroll import unroll
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.bundle import MANIFEST, Bundle, describe_files, write_manifest
from edge_sampler.runtime.compare import PYTORCH, Difference, compare, worst
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.images import save_grid, to_uint8
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.plan import Plan, sample
from edge_sampler.runtime.sampler import Sampler

CPU = "onnxrt"  # bundles are checked by the baseline, whatever else the machine has
REFERENCE_SEEDS = (0, 1, 2, 3)
TOLERANCE = 1e-3  # relative; beyond it the graph computes something else
TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Graphs:
    """What was written: for the table at the end."""

    nodes: int
    sampler_bytes: int
    denoiser_bytes: int


def write_graphs(model: Denoiser, plan: Plan, folder: Path, output: str = "float32") -> Graphs:
    """denoiser.onnx and sampler.onnx, both checked, into ``folder``."""
    exported = export_denoiser(model)
    lower_group_norm(exported)
    keep_batch_in_reshapes(exported)
    sampler = unroll(exported, plan, output)
    sampler.metadata_props.update(
        solver=plan.solver,
        nfe=str(plan.nfe),
        plan_sha256=plan.sha256,
        weights_sha256=model.spec.weights_sha256,
        random_weights=str(model.spec.random_weights),
    )
    drop_unused(exported.graph)
    denoiser_bytes = save_checked(exported, folder / "denoiser.onnx")
    sampler_bytes = save_checked(sampler, folder / "sampler.onnx")
    return Graphs(len(sampler.graph), sampler_bytes, denoiser_bytes)


def write_reference(model: Denoiser, plan: Plan, folder: Path, output: str) -> None:
    """PyTorch's own output for a few seeds: float64 states, the network in float32."""
    seeds = list(REFERENCE_SEEDS)
    classes = model.spec.classes
    device = model.device
    labels = torch.arange(len(seeds), device=device) % classes if classes else None
    network = Network(model, labels)
    denoised: list[np.ndarray] = []

    def record(x: torch.Tensor, sigma: float) -> torch.Tensor:
        result = network(x, sigma)
        denoised.append(result.float().cpu().numpy())
        return result

    noise = torch.from_numpy(unit_noise(seeds, model.spec.shape)).double().to(device)
    images = sample(record, noise, plan).float().cpu().numpy()
    np.savez(
        folder / "reference.npz",
        seeds=np.array(seeds),
        class_labels=np.full(len(seeds), -1) if labels is None else labels.cpu().numpy(),
        denoised=np.stack(denoised),
        images=images,
    )
    _save_polygraphy(to_uint8(images) if output == "uint8" else images, folder / "reference.json")


def _save_polygraphy(images: np.ndarray, path: Path) -> None:
    """As ``polygraphy run --load-outputs`` reads it."""
    from polygraphy.comparator import IterationResult, RunResults
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    results.append(("pytorch", [IterationResult(outputs={"images": images}, runner_name="pytorch")]))
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results.save(str(path))


def write_samples(folder: Path, model: Denoiser, count: int) -> None:
    """samples.png, made by sampler.onnx in ONNX Runtime; classes in turn, where there are some."""
    with Sampler(Bundle.open(folder), CPU) as sampler:
        labels = [seed % model.spec.classes for seed in range(count)] if model.spec.classes else None
        images = sampler.sample(range(count), labels, batch=16)
    save_grid(images, folder / "samples.png", "RANDOM WEIGHTS" if model.spec.random_weights else "")


def close(folder: Path, model: Denoiser, plan: Plan, output: str) -> None:
    """Writes the manifest: what the bundle is, and every file now in it."""
    facts: dict[str, Any] = {
        "model": asdict(model.spec),
        "solver": plan.solver,
        "nfe": plan.nfe,
        "plan_sha256": plan.sha256,
        "gamma": [step["gamma"] for step in plan.calibration.get("steps", [])],
        "opset": OPSET,
        "precision": "float32",
        "output": output,
        "tools": {tool: importlib.metadata.version(tool) for tool in TOOLS} | {"python": platform.python_version()},
    }
    write_manifest(folder / MANIFEST, facts, describe_files(folder))


def parity(folder: Path) -> Difference:
    """The images' difference between sampler.onnx and PyTorch. Raises UserError when it is beyond ``TOLERANCE``."""
    found = worst(compare(Bundle.open(folder), backends=[CPU]), CPU, PYTORCH)
    if not found.finite or found.relative > TOLERANCE:
        raise UserError(
            f"sampler.onnx differs from PyTorch by {found.relative:.1e} relative, more than {TOLERANCE:g}; "
            "no bundle was written"
        )
    return found
