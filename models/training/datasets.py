"""The images that the shipped models are trained on, each set float32 [n, c, r, r] in [-1, 1] with its labels."""

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_sampler.runtime.errors import UserError

OWN_COLOURS = 3  # times that an emoji stands there in the font's colours, beside one of each other colour
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


@dataclass(frozen=True)
class Dataset:
    """Images and int64 labels to train on, and others, perhaps none, to judge by.

    Labels are classes [n], or a caption's tokens [n, length].
    """

    images: Tensor
    labels: Tensor
    heldout_images: Tensor
    heldout_labels: Tensor


def digits(folder: Path | None = None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8; none is held out."""
    from sklearn.datasets import load_digits

    if folder is not None:
        raise UserError(f"--data {folder} changes nothing: scikit-learn brings the digits; leave it out")
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target)
    return Dataset(images, labels, images[:0], labels[:0])


def fashion(folder: Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao et al., arXiv 1708.07747), 28×28: 60,000 images, and its 10,000 test images held out.

    ``folder`` has the four original .gz files. Raises UserError when one is missing or damaged.
    """
    folder = folder or FASHION_FOLDER
    images = {part: _idx(folder / f"{part}-images-idx3-ubyte.gz", (28, 28)) for part in ("train", "t10k")}
    labels = {part: _idx(folder / f"{part}-labels-idx1-ubyte.gz", ()).long() for part in ("train", "t10k")}
    scaled = {part: pixels[:, None].float() / 127.5 - 1 for part, pixels in images.items()}
    return Dataset(scaled["train"], labels["train"], scaled["t10k"], labels["t10k"])


def _idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8 [n, *shape] of a file in the format of MNIST: four bytes and four for each dimension, then the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        header = np.frombuffer(content, ">i4", count=2 + len(shape))
        values = np.frombuffer(content, np.uint8, offset=header.nbytes)
        return torch.from_numpy(values.reshape(header[1], *shape).copy())
    except FileNotFoundError as error:
        raise UserError(
            f"no Fashion-MNIST file at {path}: install Debian's package dataset-fashion-mnist, or download the four "
            ".gz files of github.com/zalandoresearch/fashion-mnist and name their folder with --data"
        ) from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a whole Fashion-MNIST file ({error}); download it again") from error


def emoji(font: Path | None = None) -> Dataset:
    """Emoji, 32×32 on white, with the tokens of their captions; some captions are held out.

    A picture stands there once for each of its captions; of things in the font's own colours, three times as often.
    Raises UserError where font, names or tokenizer are missing.
    """
    from edge_sampler.models.training.emoji import pictures, tokens  # which needs libraries that nothing else does

    found = list(pictures(font))
    parts = []
    for held in (False, True):
        rows = [
            (picture.pixels, caption)
            for picture in found
            if picture.held == held
            for caption in picture.captions * (1 if held or picture.varied else OWN_COLOURS)
        ]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in rows])).permute(0, 3, 1, 2)
        parts += [pixels.float() / 127.5 - 1, tokens([caption for _, caption in rows])]
    return Dataset(*parts)


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {"digits": digits, "fashion": fashion, "emoji": emoji}
