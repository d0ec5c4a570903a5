"""Seeds → noise → images, in batches, through one backend."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_sampler.runtime.backends import choose
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.noise import unit_noise

DEFAULT_BATCH = 64


class Sampler:
    """A bundle's sampler, loaded into a backend; a context manager that frees it."""

    def __init__(self, bundle: Bundle, backend: str = "auto", precision: str | None = None) -> None:
        self.bundle = bundle
        self._session = choose(bundle, backend, precision).open(bundle, precision, ())
        self.description = self._session.description
        if bundle.random_weights:
            print("note: this bundle has random weights; its images mean nothing", file=sys.stderr)

    def sample(
        self, seeds: Sequence[int], class_labels: int | Sequence[int] | None = None, batch: int | None = None
    ) -> np.ndarray:
        """Images of ``seeds``: float32 [n, C, H, W] in about [-1, 1], or uint8 [n, H, W, C] where the bundle says so.

        An image depends on its seed and class, not on the others. ``class_labels`` is one class, or one for each
        seed, -1 meaning none; a model with classes needs it. ``batch`` images are made in one run, by default as many
        as an engine takes, or 64. Raises UserError for seeds or classes out of range, or a batch beyond the engine's.
        """
        largest = self._session.largest_batch
        batch = batch if batch is not None else largest or DEFAULT_BATCH
        if batch < 1 or (largest and batch > largest):
            raise UserError(f"batch is {batch}; it must be at least 1{f' and at most {largest}' if largest else ''}")
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

    def __exit__(self, *exception: object) -> None:
        self._session.__exit__(*exception)


def load(bundle: str | Path, backend: str = "auto", precision: str | None = None) -> Sampler:
    """Opens a bundle for sampling. Raises UserError when it is damaged or no backend can run it.

    ``backend`` is a name of runtime.backends, or auto: the best that this machine can run. ``precision`` is fp32, fp16
    or bf16; None takes an engine's fastest, and ONNX Runtime's float32.
    """
    return Sampler(Bundle.open(bundle), backend, precision)


def make_feed(noise: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """The graph's inputs: noise [n, C, H, W], and class_labels int64 [n] where the model has classes."""
    return {"noise": noise} | ({"class_labels": labels} if classes else {})


def check_labels(class_labels: int | Sequence[int] | None, count: int, classes: int) -> np.ndarray:
    """int64 [count], -1 for no class. Raises UserError for labels that this model cannot take."""
    if class_labels is None:
        if classes:
            raise UserError(
                f"this model has classes: pass class_labels (--class-labels), 0 to {classes - 1}, or -1 for none"
            )
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
