"""How a policy of lerobot normalises: its statistics, read from the files that it is saved in.

They come from the processors of lerobot 0.4, or from the weights file, where lerobot 0.3 kept them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edge_sampler.models import checkpoint
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import read_object

CONFIG, PREPROCESSOR, POSTPROCESSOR = "config.json", "policy_preprocessor.json", "policy_postprocessor.json"
ACTION = "action"
STATISTICS = {  # by mode; all but the first take the data to [-1, 1]
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
WITHOUT_EFFECT = ("to_batch_processor", "device_processor", "rename_observations_processor")
OLD_STATISTICS = ("normalize_inputs.buffer_", "normalize_targets.buffer_", "unnormalize_outputs.buffer_")


class Affine(nn.Module):
    """(x - low)/scale + offset: how lerobot normalises; ``undo`` is the way back."""

    def __init__(self, low: Tensor, scale: Tensor, offset: float) -> None:
        super().__init__()
        self.offset = offset
        self.register_buffer("low", low)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.get_buffer("low")) / self.get_buffer("scale") + self.offset

    def undo(self, x: Tensor) -> Tensor:
        return (x - self.offset) * self.get_buffer("scale") + self.get_buffer("low")


@dataclass(frozen=True)
class Normaliser:
    """A step of lerobot's: a mode for each type of feature, and statistics by name, such as "action.mean"."""

    modes: Mapping[str, str]
    statistics: Mapping[str, Tensor]
    eps: float = 1e-8
    only: tuple[str, ...] | None = None  # of the observation

    def affine(self, name: str, kind: str, shape: tuple[int, ...]) -> Affine:
        """Of one feature. Raises UserError where its statistics are missing, and for an unknown mode."""
        mode = self.modes.get(kind, "IDENTITY")
        if mode == "IDENTITY" or (self.only is not None and name not in (*self.only, ACTION)):
            return Affine(torch.zeros(()), torch.ones(()), 0.0)
        if mode not in STATISTICS:
            raise UserError(f"{name} is normalised by {mode!r}; supported: {', '.join(STATISTICS)}, IDENTITY")
        low, high = (self.statistic(f"{name}.{statistic}", mode, shape) for statistic in STATISTICS[mode])
        if mode == "MEAN_STD":
            return Affine(low, high if name == ACTION else high + self.eps, 0.0)
        width = high - low
        return Affine(low, torch.where(width == 0, self.eps, width) / 2, -1.0)

    def statistic(self, key: str, mode: str, shape: tuple[int, ...]) -> Tensor:
        """[*shape], or what broadcasts to it."""
        found = self.statistics.get(key)
        if found is None or not found.isfinite().all():
            raise UserError(
                f"the policy normalises by {mode} and its folder has no {key}: save its processors, which hold the "
                "data set's statistics, into that folder (save_pretrained of each)"
            )
        try:
            torch.broadcast_to(found, shape)
        except RuntimeError:
            raise UserError(f"{key} has shape {list(found.shape)}; it must fit the feature's, {list(shape)}") from None
        return found.float()


def normalisers(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Normaliser, Normaliser]:
    """Of observations and of actions. Raises UserError where the folder has neither, or a step of another kind."""
    old = {key: value for key, value in tensors.items() if key.startswith(OLD_STATISTICS)}
    if not old:
        return processor(folder, PREPROCESSOR, "normalizer_processor"), processor(
            folder, POSTPROCESSOR, "unnormalizer_processor"
        )
    try:
        modes = dict(config["normalization_mapping"])
        names = [*config["input_features"], *config["output_features"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: the features or their normalisation are missing ({error})") from error
    named = {  # lerobot 0.3 wrote "normalize_inputs.buffer_observation_state.mean"
        f"{name}.{key.rpartition('.')[2]}": value
        for name in names
        for key, value in old.items()
        if key.rpartition(".")[0].partition("buffer_")[2] == name.replace(".", "_")
    }
    return Normaliser(modes, named), Normaliser(modes, named)


def processor(folder: Path, file: str, kind: str) -> Normaliser:
    """What a processor's file says of normalisation."""
    path, found = folder / file, None
    if not path.is_file():
        raise UserError(
            f"{folder} has no {file}, which holds the statistics that the policy normalises by: save its processors "
            "into that folder (save_pretrained of each)"
        )
    try:
        for step in read_object(path)["steps"]:
            name, settings = step.get("registry_name") or step.get("class"), step.get("config", {})
            if name == kind:
                found = settings, step.get("state_file")
            elif name not in WITHOUT_EFFECT or settings.get("rename_map"):
                raise UserError(f"{path}: the step {name} changes data, and is not supported; supported: {kind}")
        if found is None:
            raise UserError(f"{path} has no step {kind}")
        settings, state = found
        statistics = checkpoint.read(folder / Path(state).name).tensors if state else {}
        only = settings.get("normalize_observation_keys")
        return Normaliser(settings["norm_map"], statistics, settings["eps"], None if only is None else tuple(only))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a processor as lerobot writes it ({error!r})") from error
