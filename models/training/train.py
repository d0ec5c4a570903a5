"""The training loop, its recipes, and the weights that it writes."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from edge_sampler.models import checkpoint
from edge_sampler.models.architecture import build
from edge_sampler.models.networks.classifier import KNOWN, Classifier, Mixer, features, statistics
from edge_sampler.models.progress import bar
from edge_sampler.models.training import objectives
from edge_sampler.models.training.datasets import DATASETS, Dataset
from edge_sampler.models.training.objectives import Objective
from edge_sampler.models.zoo import WEIGHTS, ZOO
from edge_sampler.runtime.errors import UserError, one_line
from edge_sampler.runtime.output import check_writable, writable


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, recorded with the weights.

    Args:
        start: a model of this project whose weights it starts from, where their names and shapes agree; itself, to go
            on training.
        ema_halflife: of the averaged weights, in images.
    """

    dataset: str
    images_seen: int
    start: str | None = None
    batch: int = 64
    learning_rate: float = 1.5e-3
    warmup_steps: int = 200
    ema_halflife: int = 25_000
    seed: int = 0

    @property
    def steps(self) -> int:
        return math.ceil(self.images_seen / self.batch)

    def rate(self, step: int) -> float:
        """Learning rate: linear warm-up, cosine decay to zero."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * step / self.steps))


TEN_MILLION = Recipe("fashion", 10_000_000, batch=2048, learning_rate=3e-3, warmup_steps=300, ema_halflife=200_000)
RECIPES = {
    "edm-digits": Recipe("digits", images_seen=900_000, batch=128, warmup_steps=100),
    "flow-digits": Recipe("digits", images_seen=450_000, batch=128, warmup_steps=100),
    "edm-fashion": TEN_MILLION,
    "edm-fashion-cond": TEN_MILLION,
    "ddim-fashion": Recipe("fashion", images_seen=400_000, start="ddim-fashion", learning_rate=4e-4),
    "flow-emoji": Recipe("emoji", 10_000_000, batch=1024, learning_rate=2e-3, warmup_steps=300, ema_halflife=200_000),
    "fashion-classifier": Recipe("fashion", images_seen=900_000, batch=128),
    "fashion-judge": Recipe("fashion", images_seen=600_000, batch=128),
}
STATE, LOSSES = "state.pt", ("losses.csv", "losses.png")  # in a run's folder, beside the weights
CLASSIFIERS: dict[str, type[Classifier | Mixer]] = {"fashion-classifier": Classifier, "fashion-judge": Mixer}


def untrained(name: str) -> tuple[nn.Module, Objective]:
    """The network of that name and what it is to minimise."""
    if name in CLASSIFIERS:
        return CLASSIFIERS[name](), objectives.classification
    model = build(ZOO[name].architecture, name)
    initialise(model)
    return model, objectives.OF_PRECONDITIONING[ZOO[name].architecture["precond"]]


def initialise(network: nn.Module) -> None:
    """He-uniform weights; layers that end a residual branch start at zero, so the network starts as the identity."""
    for name, weight in network.named_parameters():
        ends_branch = any(part in name for part in ("conv1.", "proj.", "aux_conv.", "out_conv.", "map_label."))
        if weight.dim() == 1 or ends_branch:
            nn.init.constant_(weight, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            nn.init.kaiming_uniform_(weight, nonlinearity="linear")


def train(
    name: str, recipe: Recipe, folder: Path, data: Path | None = None, device: str = "cpu", save_every: int = 200
) -> Path:
    """Trains, or resumes, until ``recipe.images_seen``; returns the path of the averaged weights.

    Raises UserError when ``folder`` holds a run of another recipe or cannot be written, the dataset is missing, or the
    loss is not finite.
    """
    dataset, state_path = DATASETS[recipe.dataset](data), folder / STATE
    for made in (f"{name}.safetensors", *LOSSES):
        check_writable(folder / made, force=state_path.exists() or None)  # without a state they are another's
    torch.manual_seed(recipe.seed)
    network, objective = untrained(name)
    started_from = _start_from(network, recipe.start) if recipe.start else ""
    network.to(device)
    if device.startswith("cuda"):
        network.compile()  # many small operations, which take longer to start than to run
    averaged = {key: value.clone() for key, value in network.state_dict().items()}
    optimiser = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    losses: list[float] = []

    if state_path.exists():
        state = read_state(state_path, recipe, network, optimiser)
        averaged, losses, started_from = state["averaged"], state["losses"], state["started_from"]

    images, labels = dataset.images.to(device), dataset.labels.to(device)
    ema_decay = 0.5 ** (recipe.batch / recipe.ema_halflife)
    with bar(f"{name}, steps", recipe.steps) as advance:
        advance(len(losses))
        for step in range(len(losses), recipe.steps):
            torch.manual_seed(_seed(recipe, step))
            chosen = torch.randint(len(images), (recipe.batch,), device=device)
            with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
                loss = objective(network, images[chosen], labels[chosen])
            if not torch.isfinite(loss):
                raise UserError(f"the loss is {loss.item()} at step {step}: lower the learning rate")
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(step)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            decay = min(ema_decay, (step + 1) / (step + 10))  # a short memory while there is little to remember
            update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            update([*averaged.values()], [*network.state_dict().values()], step)
            losses.append(loss.item())
            advance(1)
            if (step + 1) % save_every == 0 or step + 1 == recipe.steps:
                state = {
                    "recipe": asdict(recipe),
                    "model": network.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "averaged": averaged,
                    "losses": losses,
                    "started_from": started_from,
                }
                content = io.BytesIO()  # since neither library tells a full disk from a fault of its own
                torch.save(state, content)
                write(state_path, content.getbuffer())

    save_losses(losses, folder)
    return write_weights(name, recipe, averaged, losses, dataset, folder, started_from)


def read_state(path: Path, recipe: Recipe, network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """What a run of ``recipe`` left; network and optimiser take theirs. Raises UserError for anything else."""
    otherwise = f"remove {path.parent} or choose another --out"
    if not path.is_file():
        raise UserError(f"{path} is no file; {otherwise}")
    try:
        with ZipFile(path) as archive:  # PyTorch does not compare the sums that it writes
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        state = torch.load(path, map_location=next(network.parameters()).device, weights_only=True)
        if not isinstance(state, dict):
            raise TypeError(f"it is a {type(state).__name__}")
        of_another = state["recipe"] != asdict(recipe)
        if not of_another:
            network.load_state_dict(state["averaged"])  # these must fit as well
            network.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
            if not all(type(loss) is float for loss in state["losses"]) or type(state["started_from"]) is not str:
                raise ValueError("its losses or its start are damaged")
    except Exception as error:  # each part of PyTorch raises its own
        reason = one_line(f"{type(error).__name__}: {error}", most=200)
        raise UserError(f"{path} cannot be read as the state of a run ({reason}); {otherwise}") from error
    if of_another:
        raise UserError(f"{path} is of another recipe; {otherwise}")
    return state


def write_weights(
    name: str,
    recipe: Recipe,
    averaged: Mapping[str, Tensor],
    losses: Sequence[float],
    dataset: Dataset,
    folder: Path,
    started_from: str,
    lately: int = 200,
) -> Path:
    """The averaged weights in half precision, with how they were made and what they are worth; returns their path.

    ``started_from`` is the hash of other weights, or empty. The final loss is the mean of the last so many steps.
    """
    network, objective = untrained(name)
    half = {key: value.half().cpu() for key, value in averaged.items()}
    network.load_state_dict({key: value.float() for key, value in half.items()})
    metadata = {
        "recipe": json.dumps(asdict(recipe)),
        "images_seen": str(len(losses) * recipe.batch),
        "final_loss": f"{sum(losses[-lately:]) / len(losses[-lately:]):.5f}",
        "weights_sha256": checkpoint.weights_sha256(half),
        "started_from": started_from,
        **heldout_figures(network.eval(), objective, dataset, recipe),
    }
    if isinstance(network, Classifier | Mixer):  # the file says what it makes of real images: FD needs no dataset
        real = statistics(features(network, dataset.images))
        half |= {"real_mean": real.mean.float(), "real_covariance": real.covariance.float()}
        if isinstance(network, Mixer):
            half["real_features"] = features(network, dataset.heldout_images[:KNOWN]).half()
    else:
        metadata |= {"architecture": json.dumps(ZOO[name].architecture), "licence": ZOO[name].licence}
    weights = folder / f"{name}.safetensors"
    write(weights, safetensors.torch.save(half, metadata))
    return weights


def write(path: Path, content: bytes | memoryview) -> None:
    """The old file or the new, whole."""
    with writable(path, force=True) as new:
        new.write_bytes(content)


def _seed(recipe: Recipe, step: int) -> int:
    """Each step has its own stream, so that resuming changes nothing."""
    return recipe.seed * 1_000_003 + step + 1


def _start_from(network: nn.Module, start: str) -> str:
    """Takes over the tensors of ``start`` that fit, the last run's or the shipped ones; returns these weights' hash."""
    paths = [Path("runs") / start / f"{start}.safetensors", WEIGHTS / f"{start}.safetensors"]
    found = checkpoint.read(next((path for path in paths if path.exists()), paths[-1])).tensors
    own = network.state_dict()
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(own | {key: value.float() for key, value in fitting.items()})
    return checkpoint.weights_sha256(found)


@torch.no_grad()
def heldout_figures(network: nn.Module, objective: Objective, dataset: Dataset, recipe: Recipe) -> Mapping[str, str]:
    """The loss, and a classifier's accuracy, on images that training never saw; empty where there are none."""
    if not len(dataset.heldout_images):
        return {}
    torch.manual_seed(_seed(recipe, -1))
    losses, hits = [], 0
    for part in range(0, len(dataset.heldout_images), 500):
        images, labels = dataset.heldout_images[part : part + 500], dataset.heldout_labels[part : part + 500]
        losses.append(objective(network, images, labels).item())
        if isinstance(network, Classifier | Mixer):
            hits += int((network(images).argmax(1) == labels).sum())
    accuracy = {"heldout_accuracy": f"{hits / len(dataset.heldout_images):.4f}"} if hits else {}
    return {"heldout_loss": f"{sum(losses) / len(losses):.5f}", **accuracy}


def save_losses(losses: Sequence[float], folder: Path) -> None:
    """losses.csv, one row a step, and losses.png, its curve smoothed over 100 steps (log scale)."""
    import matplotlib.pyplot as plt

    table, curve = (folder / name for name in LOSSES)
    with writable(table, force=True) as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "loss"])
        writer.writerows(enumerate(losses))
    window = min(100, len(losses))
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.semilogy(Tensor(losses).unfold(0, window, 1).mean(1).numpy())
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps")
    with writable(curve, force=True) as path:
        figure.savefig(path)
    plt.close(figure)
