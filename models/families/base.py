"""What a family of models is: folders of one library that are recognised and loaded in one way."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from edge_sampler.models.denoiser import Denoiser
from edge_sampler.runtime.errors import UserError


@dataclass(frozen=True)
class Lora:
    """One file of LoRA weights (arXiv 2106.09685).

    Args:
        path: a .safetensors file, as diffusers, PEFT or Kohya's scripts save it.
        scale: a factor for its changes of the weights.

    Examples:
        >>> edge_sampler.Lora.parse("style.safetensors:0.8").scale
        0.8
    """

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """Reads what ``--lora`` is given.

        Args:
            text: ``FILE.safetensors`` or ``FILE.safetensors:SCALE``.

        Returns:
            The file and its scale.

        Raises:
            UserError: for anything else.
        """
        name, suffix, scale = text.rpartition(".safetensors")
        number = re.fullmatch(r"(?::([-+]?[\d.]+))?", scale)
        try:
            factor = float(number[1] or 1) if suffix and number else math.nan
        except ValueError:
            factor = math.nan
        if not math.isfinite(factor):
            raise UserError(
                f"--lora {text}: expected FILE.safetensors or FILE.safetensors:SCALE, as in a.safetensors:0.8"
            )
        return cls(Path(name + suffix), factor)


@dataclass(frozen=True)
class Options:
    """What the caller chooses of a folder's model.

    Args:
        size: height and width of its images in pixels; None: the model's own.
        vae: a folder with a decoder of latents to take instead of the model's own, or where it has none.
        loras: LoRA weights to merge into it, in this order.
    """

    size: tuple[int, int] | None = None
    vae: Path | None = None
    loras: tuple[Lora, ...] = ()

    def only(self, *names: str, model: str) -> None:
        """Raises UserError where others than ``names`` are chosen for ``model``, to which they do not apply."""
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) != field.default:
                option = field.name.rstrip("s")
                raise UserError(f"--{option} does not apply to {model}, which is no folder of a pipeline; leave it out")


@dataclass(frozen=True)
class Family:
    """Folders of one library.

    Args:
        name: as people call these models, such as "robot policies of lerobot".
        recognises: whether a folder is one of these; it looks at file names and JSON alone.
        load: the denoiser of such a folder, in evaluation mode, on the CPU, float32, its ``spec`` complete. It raises
            UserError for a folder that is not whole, options that do not apply, and what is not supported.
        supported: what the library calls those that can be loaded.
        verified: what of them is, in a few words.
    """

    name: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, Options], Denoiser]
    supported: tuple[str, ...]
    verified: str
