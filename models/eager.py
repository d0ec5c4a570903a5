"""A bundle's sampler as a PyTorch loop, for ``python -m runtime bench`` to compare with."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

from edge_sampler.models.conditioned import NULL_CLASS, conditioned
from edge_sampler.models.families.base import Options
from edge_sampler.models.loading import load
from edge_sampler.models.onnx_denoiser import SUFFIX
from edge_sampler.models.zoo import ZOO
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.plan import labels_told, sample


def make(bundle: Bundle, weights: str | None, on_gpu: bool = False) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """feed → samples float32, by the very model the bundle was made of; a feed is what sampler.onnx takes.

    ``weights`` is the checkpoint, or FILE.py:FUNCTION, for a bundle whose model is not in the zoo. Raises UserError
    when the model cannot be loaded, or is another, and when PyTorch finds no GPU though it is to run there.
    """
    recorded = bundle.manifest["model"]
    if on_gpu and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU, and the backend runs on one")
    if recorded["name"].endswith(SUFFIX):
        raise UserError(f"{recorded['name']} is an ONNX graph, which PyTorch does not run")
    if weights is None and recorded["name"] not in ZOO:
        raise UserError(
            f"{recorded['name']} is not known by name: give its checkpoint, with --weights FILE, or its maker, with "
            "--weights FILE.py:FUNCTION"
        )
    sized = "decoder" in bundle.manifest["stages"] and bundle.output.is_image and Path(weights or "").is_dir()
    options = Options(size=(int(bundle.output.shape[1]), int(bundle.output.shape[2]))) if sized else None
    name = recorded["name"] if weights is None else weights
    model = load(name, random_weights=bundle.random_weights, options=options)
    settled = {name: value for name, value in recorded["built_in"].items() if not isinstance(value, str)}
    null_class = settled.pop(NULL_CLASS, None)
    model = conditioned(model, guidance=recorded["guidance"], values=settled, null_class=null_class)
    if model.spec.fingerprint != recorded["fingerprint"]:
        raise UserError(f"the model found, {model.spec.title}, is not the one that the bundle was made of")
    model.to("cuda" if on_gpu else "cpu")

    def run(feed: Mapping[str, np.ndarray]) -> np.ndarray:
        raw = {name: array for name, array in feed.items() if name != "noise"}
        with torch.inference_mode():
            conditions = model.encode(raw) if "encoder" in bundle.manifest["stages"] else loaded(raw, model.device)
            noise = torch.from_numpy(feed["noise"]).to(model.device)
            labels = labels_told(conditions, bundle.loop_inputs)
            made: torch.Tensor = sample(lambda x, sigma: model(x, sigma, **conditions), noise, bundle.plan, labels)
            return (model.decode(made) if "decoder" in bundle.manifest["stages"] else made).cpu().numpy()

    return run


def loaded(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)).to(device) for name, array in arrays.items()}
