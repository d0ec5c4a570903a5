"""Weights in a mapped file in place of memory, so that the system can drop them and read them again."""

import ctypes
import mmap
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import nn

from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError

LARGE = 10**9  # bytes of a network's weights from which on it is worth the trouble
PAGE_OUT = 21  # Linux's MADV_PAGEOUT, which Python does not name


def size_of(network: nn.Module) -> int:
    """Bytes of its weights, and of its ONNX graphs'."""
    graphs = sum(getattr(one, "weights_bytes", 0) for one in network.modules())
    return graphs + sum(tensor.nbytes for tensor in network.state_dict().values())


def move_widened(network: nn.Module, folder: Path, large: int = LARGE) -> None:
    """``move_to_file`` of large weights that ``folder`` has in fewer bits; those in float32 are mapped from there."""
    if size_of(network) >= large and not all(map(in_float32, folder.glob("*.safetensors"))):
        move_to_file(network)


def in_float32(path: Path) -> bool:
    with safetensors.safe_open(path, framework="pt") as file:
        return all(file.get_slice(name).get_dtype() == "F32" for name in file.keys())  # noqa: SIM118


def move_to_file(network: nn.Module) -> None:
    """Moves the parameters, float32 on the CPU, into a temporary file that is mapped, in place; values stay.

    The file goes with the process. Raises UserError where it does not fit.
    """
    folder, parameters = cache_folder(), list(network.parameters())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # stays open as long as it is mapped
        for parameter in parameters:
            file.write(parameter.numpy().tobytes())
        file.flush()
    except OSError as error:
        raise UserError(
            f"cannot keep {size_of(network) / 1e9:.1f} GB of weights in {folder}: {error.strerror}; let "
            "EDGE_SAMPLER_CACHE name another folder"
        ) from error
    values = torch.from_numpy(np.memmap(file, np.float32, "c"))
    start = 0
    for parameter in parameters:
        parameter.data = values[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()


def page_out(network: nn.Module, large: int = LARGE) -> None:
    """Tells the system that large weights are not needed soon: pages of files leave memory, until they are read again.

    Linux alone knows how (madvise(2), MADV_PAGEOUT). Nothing is lost anywhere.
    """
    if sys.platform != "linux" or size_of(network) < large:
        return
    advise = ctypes.CDLL(None).madvise
    for tensor in network.state_dict().values():
        if tensor.device.type == "cpu":
            start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
            advise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, end - start)), PAGE_OUT)
