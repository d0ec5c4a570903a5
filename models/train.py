"""Trains the small models that ship with the project.

    python -m models.train --dataset digits          # about 18 minutes on two cores; run again to resume

Writes runs/DATASET/: state.pt (to resume from), losses.csv, losses.png, and the averaged weights as
edm-DATASET.safetensors. The same seed gives the same run, interrupted or not.
"""

import argparse
import csv
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from models import checkpoint
from models.precond import Denoiser
from models.progress import bar
from models.zoo import ZOO, build
from runtime.errors import Parser, UserError, run_command


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters; the loss is EDM's (arXiv 2206.00364, Table 1 and eq. 21–22)."""

    images_seen: int
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    ema_halflife: int = 25_000  # in images
    p_mean: float = -0.8  # ln σ ~ N(p_mean, p_std²)
    p_std: float = 1.2
    seed: int = 0

    @property
    def steps(self) -> int:
        return math.ceil(self.images_seen / self.batch)

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, cosine decay to zero."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def digits() -> Tensor:
    """scikit-learn's handwritten digits: float32 [1797, 1, 8, 8] in [-1, 1]."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1


DATASETS: dict[str, Callable[[], Tensor]] = {"digits": digits}
RECIPES = {"digits": Recipe(images_seen=900_000)}


def initialise(network: nn.Module) -> None:
    """He-uniform weights; layers that end a residual branch start at zero, so the network starts as the identity."""
    for name, weight in network.named_parameters():
        ends_branch = any(part in name for part in ("conv1.", "proj.", "aux_conv.", "out_conv."))
        if weight.dim() == 1 or ends_branch:
            nn.init.constant_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            nn.init.kaiming_uniform_(weight, nonlinearity="linear")


def edm_loss(model: Denoiser, images: Tensor, recipe: Recipe) -> Tensor:
    """λ(σ)·|D(y + σn; σ) - y|² averaged over the batch and pixels, λ = (σ² + σ_data²) / (σ·σ_data)²."""
    sigma = (torch.randn(len(images)) * recipe.p_std + recipe.p_mean).exp()
    weight = (sigma**2 + model.sigma_data**2) / (sigma * model.sigma_data) ** 2
    noisy = images + sigma[:, None, None, None] * torch.randn_like(images)
    return (weight[:, None, None, None] * (model(noisy, sigma) - images) ** 2).mean()


def train(dataset: str, recipe: Recipe, folder: Path, save_every: int = 200) -> Path:
    """Trains, or resumes, until ``recipe.images_seen``; returns the path of the averaged weights."""
    name = f"edm-{dataset}"
    images = DATASETS[dataset]()
    model = build(ZOO[name].architecture, name)
    torch.manual_seed(recipe.seed)
    initialise(model)
    averaged = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    losses: list[float] = []

    folder.mkdir(parents=True, exist_ok=True)
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise UserError(f"{state_path} is of another recipe; remove {folder} or choose another --out")
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        averaged, losses = state["averaged"], state["losses"]

    ema_decay = 0.5 ** (recipe.batch / recipe.ema_halflife)
    with bar(f"{name}, steps", recipe.steps) as advance:
        advance(len(losses))
        for step in range(len(losses), recipe.steps):
            torch.manual_seed(
                recipe.seed * 1_000_003 + step + 1
            )  # each step has its own stream: resuming changes nothing
            loss = edm_loss(model, images[torch.randint(len(images), (recipe.batch,))], recipe)
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            decay = min(ema_decay, (step + 1) / (step + 10))  # a short memory while there is little to remember
            for key, value in model.state_dict().items():
                averaged[key].lerp_(value, 1 - decay)
            losses.append(loss.item())
            advance(1)
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                state = {
                    "recipe": asdict(recipe),
                    "model": model.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "averaged": averaged,
                    "losses": losses,
                }
                torch.save(state, state_path.with_suffix(".new"))
                state_path.with_suffix(".new").replace(state_path)

    save_losses(losses, folder)
    weights = folder / f"{name}.safetensors"
    metadata = {
        "architecture": json.dumps(ZOO[name].architecture),
        "licence": ZOO[name].licence,
        "recipe": json.dumps(asdict(recipe)),
        "final_loss": f"{sum(losses[-save_every:]) / len(losses[-save_every:]):.5f}",
        "weights_sha256": checkpoint.weights_sha256(averaged),
    }
    safetensors.torch.save_file(averaged, weights, metadata)
    return weights


def save_losses(losses: list[float], folder: Path) -> None:
    """losses.csv, one row a step, and losses.png, its curve smoothed over 100 steps (log scale)."""
    with (folder / "losses.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows(enumerate(losses))
    window = min(100, len(losses))
    smooth = torch.tensor(losses).unfold(0, window, 1).mean(1).log()
    width, height = 640, 360
    low, high = smooth.min().item(), smooth.max().item() + 1e-9
    points = [
        (20 + (width - 40) * i / max(1, len(smooth) - 1), 20 + (height - 40) * (high - value) / (high - low))
        for i, value in enumerate(smooth.tolist())
    ]
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    draw.line(points, fill="navy", width=2)
    draw.text(
        (24, 4), f"loss (log scale): {math.exp(high):.3f} to {math.exp(low):.3f} in {len(losses)} steps", fill="black"
    )
    picture.save(folder / "losses.png")


def main() -> None:
    parser = Parser(
        prog="python -m models.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=DATASETS)
    parser.add_argument("--images", type=int, help="training images to see in all (default: the dataset's recipe)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="default: runs/DATASET")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.dataset]
    images = recipe.images_seen if arguments.images is None else arguments.images
    if images < 1:
        raise UserError(f"--images is {images}; it must be at least 1")
    recipe = Recipe(**(asdict(recipe) | {"images_seen": images, "seed": arguments.seed}))
    weights = train(arguments.dataset, recipe, arguments.out or Path("runs") / arguments.dataset)
    print(f"{weights}: copy it to models/weights/ to ship it")


if __name__ == "__main__":
    run_command(main)
