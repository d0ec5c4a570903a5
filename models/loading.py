"""Makes a denoiser of a model's name, a file, a folder or an address."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edge_sampler.models import (
    checkpoint,
    edm2,
    families,
    guided_diffusion,
    latents,
    onnx_denoiser,
    pipeline,
    prompts,
    python_file,
)
from edge_sampler.models.architecture import build, randomise
from edge_sampler.models.checkpoint import Checkpoint
from edge_sampler.models.denoiser import Denoiser, Preconditioned
from edge_sampler.models.download import fetch
from edge_sampler.models.families.base import Options
from edge_sampler.models.networks.dhariwal_unet import DhariwalUNet
from edge_sampler.models.networks.edm2_unet import EDM2UNet
from edge_sampler.models.own import give_examples
from edge_sampler.models.published import HUB
from edge_sampler.models.zoo import WEIGHTS, ZOO
from edge_sampler.runtime.errors import UserError, one_line
from edge_sampler.runtime.json_file import ODD, read_object

MOST_OF_A_LICENCE = 200  # characters: a name or a sentence, not the text


def load(
    model: str,
    weights: str | Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    options: Options | None = None,
) -> Denoiser:
    """A denoiser in evaluation mode, on the CPU, float32.

    Args:
        model: a name of ``ZOO``; a checkpoint that describes itself (EDM .pkl, .safetensors with metadata), by its path
            or URL; a .json file with an architecture's arguments; a folder of a diffusers pipeline, or its OWNER/NAME
            on the hub; an ONNX denoiser's FILE.onnx, or the folder of a bundle that has one; or FILE.py:FUNCTION,
            which makes a denoiser (``edge_sampler.adapt``) and is run.
        weights: the checkpoint to load into that architecture, instead of the model's own.
        random_weights: random weights, seeded by ``seed``: a dry run, marked so in ``spec``.
        options: what a folder's family lets its caller choose.

    Raises UserError for an unknown name, a bad file, or weights of another architecture.
    """
    options = options or Options()
    if python_file.is_named(model):
        options.only(model=model)
        if weights is not None or random_weights:
            raise UserError(f"{model} brings its own weights; leave --weights and --random-weights out")
        return python_file.load(model)
    if graph := onnx_denoiser.find(model):
        options.only(model=model)
        if weights is not None or random_weights:
            raise UserError(f"{model} is a graph, whole as it is; leave --weights and --random-weights out")
        return onnx_denoiser.load(graph)
    folder = _folder(model)
    if folder and (family := families.find(folder)):
        if weights is not None or random_weights:
            raise UserError(f"{model} brings its own weights; leave --weights and --random-weights out")
        try:
            found = family.load(folder, options)
        except (*ODD, RuntimeError, ArithmeticError) as error:  # of another library, by settings unlike any network's
            told = one_line(f"{type(error).__name__}: {error}", most=300)
            raise UserError(f"{folder} cannot be loaded: its files do not fit each other ({told})") from error
        found.spec = replace(found.spec, name=Path(model).resolve().name)  # a repository's folder is named by a hash
        return found
    origin = _find(model, folder)
    architecture = origin.architecture()
    of_latents = architecture.get("latents")
    options.only(*["vae"] if of_latents else [], model=model)
    if random_weights:
        network = build(architecture, origin.name)
        randomise(network, seed)
        licence = "none: random weights"
    else:
        if weights is not None:
            source = checkpoint.read(Path(weights))
        elif origin.read is not None:
            source = origin.read()
        else:
            raise UserError(f"{model} is an architecture without weights; add --weights FILE or --random-weights")
        with torch.device("meta"):  # shapes without memory: the checkpoint brings the values
            network = build(architecture, origin.name)
        _fill(network, source, origin, architecture)
        licence = origin.licence
    digest = checkpoint.weights_sha256(network.state_dict())
    network.describe(origin.name, licence, digest, architecture, random_weights)
    if of_latents:
        latents.with_decoder(network, of_latents, options.vae)
    if text := architecture.get("text"):
        network.spec = replace(network.spec, raw=prompts.prompt(text), made=(prompts.EMBEDS,))
    if origin.examples:
        give_examples(network, {prompts.PROMPT: origin.examples.read_text().splitlines()})
    return network


@dataclass(frozen=True)
class _Origin:
    """Where a model's parts come from; ``read`` is None where no weights belong to it."""

    name: str
    architecture: Callable[[], dict[str, Any]]
    read: Callable[[], Checkpoint] | None
    licence: str = "unknown"
    shapes_sha256: str | None = None  # of the tensors' names and shapes
    examples: Path | None = None  # captions, one a line


def _folder(model: str) -> Path | None:
    """Where a model's folder is, downloaded first if it is the hub's; None where ``model`` names something else."""
    path = Path(model)
    if model in ZOO or path.suffix in (".json", *checkpoint.FORMATS):
        return None
    if path.is_dir():
        return pipeline.snapshot(path)
    if pipeline.HUB_ID.fullmatch(model) and not path.parent.is_dir():
        return pipeline.download(model)
    return None


def _find(model: str, folder: Path | None) -> _Origin:
    path = Path(model)
    if row := ZOO.get(model):
        return _Origin(
            model, lambda: row.architecture, lambda: _read(row.source), row.licence, row.shapes_sha256, row.examples
        )
    if path.suffix == ".json":
        return _Origin(path.stem, lambda: read_object(path), None)
    if path.suffix in checkpoint.FORMATS:
        found = _fetched(model) if "://" in model else checkpoint.read(path)
        if found.architecture is None:
            raise UserError(
                f"{model} does not say its architecture; use --model NAME or ARCHITECTURE.json --weights {model}"
            )
        architecture = found.architecture
        licence = one_line((found.metadata or {}).get("licence", "unknown"), MOST_OF_A_LICENCE)
        return _Origin(path.stem, lambda: architecture, lambda: found, licence)
    if folder:
        return _Origin(path.resolve().name, lambda: pipeline.architecture(folder), lambda: pipeline.read(folder))
    if path.suffix == ".py":
        raise UserError(f"--model {model} names no function: FILE.py:FUNCTION makes a model, as in {model}:make")
    if len(path.parts) > 1 or model.endswith("/"):
        raise UserError(f"there is no file or folder {model}, and no model of that name")
    near = difflib.get_close_matches(model, ZOO, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(ZOO)}."
    files = "/".join(checkpoint.FORMATS)
    raise UserError(
        f"unknown model {model!r}: {hint} A path or URL of a {files} file works too, a pipeline's or bundle's folder, "
        "FILE.onnx and FILE.py:FUNCTION"
    )


def _read(source: str) -> Checkpoint:
    """The weights of a zoo row's source."""
    if source.startswith(HUB):
        return pipeline.read(pipeline.download(source.removeprefix(HUB)))
    return _fetched(source) if "://" in source else checkpoint.read(WEIGHTS / source)


def _fetched(url: str) -> Checkpoint:
    """What the file at ``url`` holds. Where it is damaged, the error says how it can be had anew."""
    path = fetch(url)
    try:
        return checkpoint.read(path)
    except UserError as error:
        raise UserError(f"{error}. It came from {url}: delete it, and it is downloaded again") from error


def _fill(network: Preconditioned, source: Checkpoint, origin: _Origin, architecture: Mapping[str, Any]) -> None:
    wanted, found, name = network.state_dict(), dict(source.tensors), origin.name
    found.pop("u", None)  # noise levels of EDM's iDDPMPrecond, which models.precond.iddpm computes
    if any(key.startswith(pipeline.PREFIX) for key in wanted):
        found = pipeline.named_ours(found)
    if guided_diffusion.MARK in found and isinstance(network.model, DhariwalUNet):
        found = guided_diffusion.named_ours(found, network.model, bool(architecture.get("new_attention_order")))
    if edm2.MARK in found and isinstance(network.model, EDM2UNet):
        edm2.check_same(architecture, source.architecture or {})
        found = edm2.folded(found, network.model)
    problems = (
        [f"{key} is missing" for key in wanted if key not in found]
        + [f"{key} is surplus" for key in found if key not in wanted]
        + [
            f"{key} is {list(found[key].shape)} instead of {list(wanted[key].shape)}"
            for key in wanted
            if key in found and found[key].shape != wanted[key].shape
        ]
        + [
            f"{key} holds {found[key].dtype}, which is no floating-point type"
            for key in wanted
            if key in found and not found[key].is_floating_point()
        ]
    )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"the weights do not fit the architecture of {name}: {'; '.join(problems[:3])}{more}")
    if origin.shapes_sha256 and checkpoint.shapes_sha256(found) != origin.shapes_sha256:
        raise UserError(f"the weights' shapes are not those published for {name}")
    tensors = {key: found[key].to(torch.float32) for key in wanted}
    bad = [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise UserError(f"the weights hold NaN or infinity in {bad[0]}")
    published = (source.metadata or {}).get("weights_sha256")
    if published and published != checkpoint.weights_sha256(tensors):
        raise UserError(f"the weights of {name} are damaged: their SHA-256 is not the one recorded with them")
    network.load_state_dict(tensors, assign=True)
    left = [key for key, buffer in network.named_buffers() if buffer.is_meta]
    if left:
        raise UserError(f"{name} computes with {left[0]}, which no checkpoint holds: its blocks are not supported")
