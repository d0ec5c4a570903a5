"""What a sampler makes, as a picture."""

from pathlib import Path

import numpy as np

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.images import save_grid

SHOWN = 16  # samples drawn as lines


def draw(made: np.ndarray, bundle: Bundle, path: Path) -> None:
    """A PNG of samples [n, …]: pictures in a grid, other channels one tile each, sequences as lines; else nothing."""
    caption = "RANDOM WEIGHTS" if bundle.random_weights else ""
    if bundle.dtype == "uint8" or bundle.output.is_image:
        save_grid(made, path, caption)
    elif made.ndim == 4:
        save_grid(made.reshape(-1, 1, *made.shape[2:]), path, caption)
    elif made.ndim in (2, 3):
        draw_lines(made, f"{bundle.output.name} ({bundle.output.units}) {caption}", path)


def draw_lines(made: np.ndarray, title: str, path: Path) -> None:
    """Samples [n, length] or [n, length, dims]: a panel each, a line for each dimension."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    shown = made[:SHOWN]
    columns = int(np.ceil(np.sqrt(len(shown))))
    rows = -(-len(shown) // columns)
    figure, panels = pyplot.subplots(rows, columns, figsize=(2 * columns, 1.5 * rows), squeeze=False, sharey=True)
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    for panel, sample in zip(panels.flat, shown, strict=False):
        panel.plot(sample, linewidth=0.8)
        panel.tick_params(labelsize=6)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
