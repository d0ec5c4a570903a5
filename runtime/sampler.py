"""Seeds → noise → images, in batches, through one engine."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.backends import choose
from runtime.bundle import Bundle
from runtime.errors import UserError
from runtime.noise import unit_noise


class Sampler:
    """A bundle's sampler, loaded into a backend; a context manager that frees it."""

    def __init__(self, bundle: Bundle, backend: str = "auto") -> None:
        self.bundle = bundle
        self._session = choose(backend).Session(bundle.graph("sampler.onnx"))
        if bundle.random_weights:
            print("note: this bundle has random weights; its images mean nothing", file=sys.stderr)

    def sample(
        self, seeds: Sequence[int], class_labels: int | Sequence[int] | None = None, batch: int = 64
    ) -> np.ndarray:
        """Images of ``seeds``: float32 [n, C, H, W] in about [-1, 1], or uint8 [n, H, W, C] where the bundle says so.

        An image depends on its seed and class, not on the others. ``class_labels`` is one class, or one for each
        seed, -1 meaning none; a model with classes needs it. Raises UserError for seeds or classes out of range.
        """
        if batch < 1:
            raise UserError(f"batch is {batch}; it must be at least 1")
        if len(seeds) == 0:
            raise UserError("no seeds: name at least one")
        labels = check_labels(class_labels, len(seeds), self.bundle.classes)
        images = []
        for start in range(0, len(seeds), batch):
            chunk = slice(start, start + batch)
            feed = make_feed(unit_noise(seeds[chunk], self.bundle.shape), labels[chunk], self.bundle.classes)
            images.append(self._session.run(feed)["images"])
        return np.concatenate(images)

    def __enter__(self) -> "Sampler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.__exit__(kind, error, trace)


def load(bundle: str | Path, backend: str = "auto") -> Sampler:
    """Opens a bundle for sampling. Raises UserError when it is damaged or no backend can run it."""
    return Sampler(Bundle.open(bundle), backend)


def make_feed(noise: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """The graph's inputs: noise [n, C, H, W], and class_labels int64 [n] where the model has classes."""
    return {"noise": noise} | ({"class_labels": labels} if classes else {})


def check_labels(class_labels: int | Sequence[int] | None, count: int, classes: int) -> np.ndarray:
    """int64 [count], -1 for no class. Raises UserError for labels that this model cannot take."""
    if class_labels is None:
        if classes:
            raise UserError(f"this model has classes: pass class_labels, 0 to {classes - 1}, or -1 for none")
        return np.full(count, -1, np.int64)
    if not classes:
        raise UserError("this model has no classes: leave class_labels out")
    labels = np.asarray(class_labels)
    if labels.dtype.kind not in "iu" or labels.ndim > 1 or (labels.ndim == 1 and len(labels) != count):
        raise UserError(f"class_labels must be one whole number, or {count} of them, one for each seed")
    if labels.size and not (labels.min() >= -1 and labels.max() < classes):
        wrong = labels.min() if labels.min() < -1 else labels.max()
        raise UserError(f"class label {wrong} is out of range; classes are 0 to {classes - 1}, -1 is none")
    return np.broadcast_to(labels, count).astype(np.int64)
