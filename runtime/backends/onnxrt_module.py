"""ONNX Runtime's Python module, and graphs in a form that it opens."""

import contextlib
import importlib
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_sampler.runtime.cache_folder import OWN, cache_folder
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import sweep, temporary
from edge_sampler.runtime.verified import weights_beside

INSTALL = "install onnxruntime"
OLDEST = (1, 18)  # that reads our graphs
THREADS = "EDGE_SAMPLER_THREADS"  # names the environment variable: of the CPU, in one run


def threads() -> int:
    """How many threads ONNX Runtime may compute with on the CPU; 0, the default: as many as there are cores.

    Never more than cores: they wait by spinning, and so would take the cores from each other. Raises UserError where
    the environment names no number.
    """
    told = os.environ.get(THREADS, "0")
    if not re.fullmatch(r"\d{1,4}", told):
        raise UserError(f"{THREADS} is {told!r}; it must be a number of threads, or 0 for all cores")
    return min(int(told), os.cpu_count() or 1)


def library() -> Any:
    """ONNX Runtime's module. Raises UserError where it is missing, too old, or cannot be loaded."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # NumPy 2 tells of extensions made for NumPy 1 at length
            module: Any = importlib.import_module("onnxruntime")
            release = re.findall(r"\d+", module.__version__)
    except ModuleNotFoundError as error:
        raise UserError(INSTALL) from error
    except Exception as error:  # its own import raises what it likes
        reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
        numpy_2 = f"; if it was made for NumPy 1 ({np.__version__} is installed): pip install 'numpy<2'"
        raise UserError(f"onnxruntime cannot be loaded ({reason}){numpy_2 * (np.__version__ >= '2')}") from error
    if tuple(map(int, release[:2])) < OLDEST:
        raise UserError(
            f"onnxruntime {'.'.join(map(str, OLDEST))} or later is needed, and {module.__version__} is installed"
        )
    return module


@contextlib.contextmanager
def without_links(path: Path) -> Iterator[Path]:
    """The graph, with the file of its weights beside it and not behind a link, which ONNX Runtime does not follow.

    Caches of hubs and of data tools keep the files of a folder as links. The weights are linked anew, not copied, where
    the cache folder is on their disk. Raises UserError where that is no folder.
    """
    files = [path, *filter(Path.exists, weights_beside(path))]
    if len(files) == 1 or not any(map(Path.is_symlink, files)):
        yield path
        return
    place = cache_folder() / "linked"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {place}: {error.strerror}; let {OWN} name another folder") from error
    sweep(place)
    with temporary(place / "graph") as folder:
        for file in files:
            try:
                os.link(file.resolve(), folder / file.name)
            except OSError:
                shutil.copyfile(file, folder / file.name)
        yield folder / path.name
