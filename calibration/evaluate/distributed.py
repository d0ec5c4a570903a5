"""Calibration on several processes: each has a share of the noises, and sums go over all of them.

``torchrun --nproc-per-node N -m calibration …`` starts them; gloo joins CPUs, nccl GPUs. Every decision rests on sums,
which all processes hold bit for bit, so all go the same way.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

from edge_sampler.models.progress import ProgressBars, bar, silent
from edge_sampler.runtime.errors import BoundError, UserError, one_line
from edge_sampler.runtime.output import writable

BLOCK = 32  # noises that stay together
Result = TypeVar("Result")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Joins torchrun's processes, where there are any and they are not joined, and lets none leave before all are done.

    If one left early with an error, torchrun would end the others, rank 0 perhaps while it writes.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or distributed.is_initialized():
        yield
        return
    try:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        size, told = os.environ["WORLD_SIZE"], one_line(str(error), most=200)
        raise UserError(
            f"WORLD_SIZE is {size!r}, as torchrun sets it, and no processes can be joined ({told}): unset it, or start "
            "the command by torchrun"
        ) from error
    try:
        yield
        total(np.zeros(1))  # a barrier, which says when one is gone
    finally:
        distributed.destroy_process_group()


def written(
    target: Path,
    device: torch.device,
    work: Callable[[ProgressBars], Result],
    write: Callable[[Result, Path], None],
    force: bool | None = None,
) -> Result | None:
    """Runs ``work`` in all processes. The first shows progress and writes the result to ``target``, or nothing at all.

    Returns the result in the first process, None in the others. Raises what ``work``, ``write`` and ``writable`` raise.
    """
    with joined(device):
        if rank():
            work(silent)
            return None
        with writable(target, force) as path:
            result = work(bar)
            write(result, path)
        return result


def processes() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """0 for the process that reports and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(seeds: range) -> list[int]:
    """This process's part of the seeds: whole blocks in turn, or one run of neighbours where there are too few blocks.

    A network's float32 results depend on what else is in the batch, so blocks that stay together give the same sums.
    Of neighbours, each process has as many that share a remainder, by which refinement takes noises in turns.
    Raises UserError where there are fewer than processes.
    """
    if len(seeds) < processes():
        raise UserError(f"{len(seeds)} noises are too few: {processes()} processes need one each, or more")
    if len(seeds) >= BLOCK * processes():
        return [seed for place, seed in enumerate(seeds) if place // BLOCK % processes() == rank()]
    return [seed for place, seed in enumerate(seeds) if place * processes() // len(seeds) == rank()]


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all processes, one process after the other. Raises what ``total`` raises."""
    counts = total(np.bincount([rank()], [len(rows)], processes()))
    before = int(counts[: rank()].sum())
    every = np.zeros((int(counts.sum()), *rows.shape[1:]))
    every[before : before + len(rows)] = rows
    return total(every)


def total(values: np.ndarray) -> np.ndarray:
    """The sum over all processes, float64, the same bits in each. Raises BoundError when one of them is gone."""
    if processes() == 1:
        return values
    nccl = distributed.get_backend() == "nccl"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if nccl else torch.device("cpu")
    tensor = torch.as_tensor(values, dtype=torch.float64, device=device).clone()
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as error:
        raise BoundError(
            f"process {rank()} of {processes()} lost another one ({str(error).splitlines()[0]}); what was computed is "
            "kept: start the same command again, and it goes on"
        ) from error
    return tensor.cpu().numpy()
