"""Trains the models that ship with the project, on a CPU or a GPU.

    python -m models.train --dataset digits          # edm-digits: about 18 minutes on two cores; run again to resume
    python -m models.train --dataset fashion         # edm-fashion: 5 minutes on an H200, a day on two cores (--images)
    python -m models.train --dataset emoji           # flow-emoji: ten million images, for a GPU (--images on a CPU)
    python -m models.train --model ddim-fashion      # any name of RECIPES

Writes runs/MODEL/: state.pt (to resume from), losses.csv, losses.png, and the averaged weights, in half precision, as
MODEL.safetensors. The same seed gives the same run on one CPU, interrupted or not; a GPU rounds in bfloat16, and sums
in no fixed order.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_sampler.models.device import best_device, usable_device
from edge_sampler.models.training.datasets import DATASETS
from edge_sampler.models.training.train import RECIPES, train
from edge_sampler.runtime.command_line import Parser
from edge_sampler.runtime.errors import UserError

BOUNDS = {  # by option: the field of a recipe, the least and the largest value
    "images": ("images_seen", 1, 2**40),
    "batch": ("batch", 1, 2**16),
    "seed": ("seed", 0, 2**32),
}


def main() -> None:
    parser = Parser(
        prog="python -m models.train",
        description=__doc__,
        common=("--dataset", "--model", "--images", "--device", "--out"),
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=DATASETS, help="trains the dataset's first model of RECIPES")
    which.add_argument("--model", choices=RECIPES, help="trains this model")
    parser.add_argument("--data", type=Path, help="its original files: a folder, or a font (default: Debian's)")
    parser.add_argument("--images", type=int, help="training images to see in all (default: the model's recipe)")
    parser.add_argument("--batch", type=int, help="images in a training step (default: the model's recipe)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run (default: 0)")
    parser.add_argument("--device", default=best_device(), help="cuda or cpu")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/MODEL)")
    arguments = parser.parse_args()
    name = arguments.model or next(name for name in RECIPES if RECIPES[name].dataset == arguments.dataset)
    changes = dict[str, Any]()
    for option, (field, least, most) in BOUNDS.items():
        value = getattr(arguments, option)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{option} is {value}; it must be at least {least} and at most {most:,}")
        changes |= {} if value is None else {field: value}
    recipe, device = replace(RECIPES[name], **changes), usable_device(arguments.device)
    weights = train(name, recipe, arguments.out or Path("runs") / name, arguments.data, str(device))
    print(f"{weights}: copy it to models/weights/ to ship it")
