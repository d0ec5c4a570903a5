"""Lists the models that are known by name, or verifies one.

python -m models list
python -m models verify edm-digits
python -m models verify edm-cifar10-32x32-uncond-vp.pkl
"""

import argparse
import json
from functools import cache

import numpy as np
import torch

from edge_sampler.models import checkpoint, pipeline
from edge_sampler.models.architecture import build
from edge_sampler.models.denoiser import Denoiser
from edge_sampler.models.download import cached
from edge_sampler.models.families import FAMILIES
from edge_sampler.models.loading import load
from edge_sampler.models.onnx_graph import OnnxGraph
from edge_sampler.models.own import with_examples
from edge_sampler.models.zoo import GROUPS, ZooRow
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.command_line import Parser, given
from edge_sampler.runtime.condition import CLASSES, Shape
from edge_sampler.runtime.errors import BoundError, UserError
from edge_sampler.runtime.noise import unit_noise

CHECK_STREAM = 3  # of noise
CHECKED_LEVELS, CHECKED_IMAGES = 6, 16
MOST_LEFT = 1.1  # of the noise; where images are clear beside it, a good network leaves just under 1
LEAST_LEVEL, HIGHEST_LEVEL = 0.02, 80.0  # of noise that are looked at; less is lost in rounding


def main() -> None:
    parser = Parser(prog="python -m models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="the models that are known by name").set_defaults(run=lambda arguments: show())
    command = commands.add_parser("verify", help="what a model is, and whether it removes noise")
    command.add_argument("model", help="a name of the list, or a file")
    command.add_argument("--weights", help="a checkpoint to load into the model instead of its own")
    command.add_argument("--conditions", metavar="FILE.npz", help="values of the model's conditions, [rows, …] by name")
    command.set_defaults(run=lambda arguments: verify(chosen(arguments)))
    arguments = parser.parse_args()
    arguments.run(arguments)


def chosen(arguments: argparse.Namespace) -> Denoiser:
    model = load(arguments.model, arguments.weights)
    if arguments.conditions:
        with_examples(model, given([arguments.conditions]))
    return model


def show() -> None:
    line = "{:23} {:9} {:>7} {:>10}  {:15} {}"
    print(line.format("name", "images", "classes", "parameters", "weights", "licence"))
    for group in GROUPS:
        print(f"\n{group.title}. Verified: {group.verified}.")
        for name, row in group.rows.items():
            shape = (row.architecture["img_channels"], *[row.architecture["img_resolution"]] * 2)
            count = counted(json.dumps(row.architecture))
            cells = (size(shape), row.architecture.get("label_dim") or "-", count, where(row), row.licence)
            print(line.format(name, *cells))
    for family in FAMILIES:
        print(f"\nFolders: {family.name}. Verified: {family.verified}.\n{', '.join(family.supported)}")
    print(f"\nWeights that are not there are downloaded when first used, into {cache_folder()}")


@cache
def counted(architecture: str) -> str:
    """The parameters of a network of these arguments, JSON; "?" where a library that it needs is missing."""
    try:
        with torch.device("meta"):
            return parameters(build(json.loads(architecture), "of the list"))
    except UserError:
        return "?"


def verify(model: Denoiser) -> None:
    """Prints what the model is, and its denoising errors. Raises BoundError when it leaves more noise than came."""
    spec = model.spec
    print(f"{spec.name}: {type(model.model).__name__} of {parameters(model)} parameters")
    print(f"{spec.output.name} {size(spec.inputs.shape)}, classes {spec.classes or 'none'}")
    print(f"licence {spec.licence}; noise levels {spec.sigma_min:g} to {spec.sigma_max:g}")
    if not isinstance(model.model, OnnxGraph):
        print(f"shapes SHA-256  {checkpoint.shapes_sha256(model.state_dict())}")
    print(f"weights SHA-256 {spec.weights_sha256}")
    errors = denoising_errors(model)
    for sigma, error in errors.items():
        print(f"noise level {sigma:8.3f}: of the noise, {error:.3f} is left")
    if not max(errors.values()) < MOST_LEFT:
        raise BoundError(f"{spec.name} leaves more noise than came: its weights are of something else, or untrained")


@torch.inference_mode()
def denoising_errors(model: Denoiser) -> dict[float, float]:
    """By noise level, the RMS error of denoised images, as a part of the noise that was added to them.

    The images are the model's own: what it made of the noise of the level before, of black ones at first.
    """
    spec = model.spec
    raw = model.draw_raw(range(CHECKED_IMAGES))
    if spec.classes:
        raw[CLASSES] = np.arange(CHECKED_IMAGES) % spec.classes
    conditions = model.encode(raw)
    images, errors = torch.zeros(CHECKED_IMAGES, *spec.shape), {}
    levels = np.geomspace(min(spec.sigma_max, HIGHEST_LEVEL), max(spec.sigma_min, LEAST_LEVEL), CHECKED_LEVELS).tolist()
    for k, sigma in enumerate(levels):
        seeds = range(k * CHECKED_IMAGES, (k + 1) * CHECKED_IMAGES)
        noise = torch.from_numpy(unit_noise(seeds, spec.shape, CHECK_STREAM)).float()
        denoised = model(images + sigma * noise, sigma, **conditions)
        errors[sigma] = (denoised - images).square().mean().sqrt().item() / sigma
        images = denoised
    return errors


def size(shape: Shape) -> str:
    return "×".join(map(str, shape))


def parameters(model: Denoiser) -> str:
    graphs = sum(one.numbers for one in model.modules() if isinstance(one, OnnxGraph))
    return f"{(graphs + sum(p.numel() for p in model.parameters())) / 1e6:.1f} M"


def where(row: ZooRow) -> str:
    if "://" not in row.source:
        return "shipped"
    if row.source.startswith(pipeline.HUB):
        there = pipeline.is_local(row.source.removeprefix(pipeline.HUB))
    else:
        there = cached(row.source).is_file()
    return "downloaded" if there else "not downloaded"
