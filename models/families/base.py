"""What a family of models is: folders of one library that are recognised and loaded in one way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_sampler.models.denoiser import Denoiser


@dataclass(frozen=True)
class Options:
    """What the caller chooses of a folder's model.

    Args:
        size: height and width of its images in pixels; None: the model's own.
        vae: a folder with a decoder of latents to take instead of the model's own, or where it has none.
    """

    size: tuple[int, int] | None = None
    vae: Path | None = None


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
