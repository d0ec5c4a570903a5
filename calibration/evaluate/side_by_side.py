"""Calls of a network side by side, each by one thread of its own, as PyTorch's data parallelism has them on GPUs.

On a CPU of one's own that is about as fast as one call by many threads. But those wait for each other at every
operation. Where another program has one of the cores, they wait some twenty times as long as they compute.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import deepcopy
from functools import cache
from queue import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor

from edge_sampler.models.denoiser import Denoiser

SAME = 1e-6  # relative and absolute: a copy's answers differ by less, if at all
Job = TypeVar("Job")
Result = TypeVar("Result")


class Replicas:
    """Copies of models that share their parameters: what a network notes in itself, others do not see."""

    def __init__(self) -> None:
        self.known: dict[Denoiser, list[Denoiser]] = {}

    def of(self, model: Denoiser, answer: Callable[[Denoiser, int], Tensor]) -> list[Denoiser]:
        """The model and its copies, one for each of PyTorch's threads; ``answer(model, k)`` asks one of sample 0 or 1.

        The model is alone on a GPU, where Python cannot copy it (a session of ONNX Runtime, for example), and where a
        copy might not be one: its functions are the model's, and may note in the model what the copy then reads. So
        hooks exclude copies, and a copy has to answer as the model does that was asked of another sample last.
        """
        if model not in self.known:
            made = self.known[model] = [model]
            shared = [*model.parameters(), model.examples]
            hooked = any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
            with suppress(Exception):  # whatever somebody's class raises
                while len(made) < torch.get_num_threads() and model.device.type == "cpu" and not hooked:
                    copy = deepcopy(model, {id(one): one for one in shared})
                    answer(model, 0)
                    if not torch.allclose(answer(copy, 1), answer(model, 1), SAME, SAME, equal_nan=True):
                        break
                    made.append(copy)
        return self.known[model]


def run(
    call: Callable[[Denoiser, Job], Result], models: Sequence[Denoiser], jobs: Sequence[Job], threads: int
) -> Iterator[Result]:
    """``call`` of each job, in their order, by whichever of the models is free; all share so many threads."""
    at_once, before, free = min(len(models), len(jobs)), torch.get_num_threads(), SimpleQueue[Denoiser]()
    for model in models[:at_once]:
        free.put(model)

    def one(job: Job) -> Result:
        model = free.get()
        try:
            return call(model, job)
        finally:
            free.put(model)

    try:
        torch.set_num_threads(threads // max(1, at_once))  # a part of it is the whole process's, not a thread's
        yield from (pool(at_once, threads // at_once).map if at_once > 1 else map)(one, jobs)
    finally:
        torch.set_num_threads(before)


@cache
def pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Each worker has so many of PyTorch's threads. They stay: a new one has to find its memory first."""
    return ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads,))


with suppress(AttributeError):  # on Windows nothing forks
    os.register_at_fork(after_in_child=pool.cache_clear)  # which has none of these threads
