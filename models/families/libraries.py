"""What diffusers and transformers load of a pipeline's folder; nothing in it is executed."""

import contextlib
import importlib
from collections.abc import Iterator
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edge_sampler.models.arguments import check_plain
from edge_sampler.models.mapped import move_widened
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import check_docstrings, install_command
from edge_sampler.runtime.json_file import read_json, read_object

VAES = ("AutoencoderKL", "AutoencoderTiny")


def load(folder: Path, library: str, name: str) -> Any:
    """What diffusers or transformers make of a part's folder, of the class ``name``. Raises UserError where none."""
    if library not in ("diffusers", "transformers"):
        raise UserError(f"{folder} is of {library}, and only what diffusers and transformers load is supported")
    made = getattr(module(library), name, None)
    if made is None or not folder.is_dir():
        raise UserError(f"{folder} is missing" if made else f"{folder}: this version of {library} has no {name}")
    network = issubclass(made, nn.Module)
    if network and (folder / "config.json").is_file():
        check_config(folder / "config.json")
    settings = {"torch_dtype" if library == "diffusers" else "dtype": torch.float32, "use_safetensors": True}
    settings |= {"variant": variant_of(folder), "output_loading_info": True}
    never = {"trust_remote_code": False} if library == "transformers" else {}  # else it asks whether to run such code
    try:
        with quiet(library):
            found = made.from_pretrained(folder, local_files_only=True, **never, **(settings if network else {}))
    except Exception as error:  # each of the two libraries raises its own
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{folder} cannot be loaded as {name}: {reason}") from error
    if not network:
        return found
    found, told = found
    if missing := sorted(told["missing_keys"]):  # one library leaves these out, the other draws them
        raise UserError(f"{folder} lacks weights that its config.json asks for: {missing[0]} ({len(missing)} in all)")
    move_widened(found.eval().requires_grad_(False), folder)
    return found


def check_config(path: Path) -> None:
    """Raises UserError for arguments of a network that are beyond any network's."""
    try:
        check_plain(read_object(path))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def variant_of(folder: Path) -> str | None:
    """``fp16`` of weights called model.fp16.safetensors, where there are no others; None for the usual ones."""
    files = [path.name.split(".") for path in folder.glob("*.safetensors")]
    return None if any(len(name) == 2 for name in files) or not files else files[0][1].split("-")[0]


def module(library: str) -> Any:
    """diffusers or transformers. Raises UserError where it is not installed, or Python leaves out its docstrings."""
    check_docstrings(library)
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(f"pipelines of diffusers need: {install_command('diffusers')} ({error})") from error


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Without what the library logs, and its progress bars: its errors are raised."""
    logging = importlib.import_module(f"{library}.utils.logging")
    level = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        logging.set_verbosity(level)


def class_of(folder: Path) -> str:
    """Of a VAE's folder. Raises UserError for another."""
    try:
        name = read_json(folder / "config.json").get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--vae {folder}: no folder of a VAE ({error})") from error
    if name not in VAES:
        raise UserError(f"--vae {folder} is {name}; supported: {', '.join(VAES)}")
    return str(name)
