"""A queue of requests: one run makes images of several."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from edge_sampler.runtime.serve.metrics import Metrics

Start = int | np.ndarray  # a seed, or its noise
Run = Callable[[Sequence["Row"]], Sequence[np.ndarray | Exception]]


class QueueFullError(Exception):
    """The queue has no room for a request now."""


@dataclass(frozen=True)
class Row:
    """What one image is made of: a start, and each condition's value."""

    start: Start
    shape: tuple[int, ...]  # of its noise
    conditions: Mapping[str, np.ndarray]

    @property
    def told(self) -> str:
        return f"seed {self.start}" if isinstance(self.start, int) else "this noise"

    @property
    def key(self) -> Hashable:
        """Rows of one key may share a run: their shapes are equal."""
        return self.shape, tuple((name, value.shape) for name, value in self.conditions.items())


@dataclass(eq=False)
class _Job:
    """One request: what is made of its rows, by place, and how many are left."""

    made: list[np.ndarray]
    left: int
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, eq=False)
class _Waiting:
    job: _Job
    place: int
    row: Row


class Batches:
    """A bounded queue in front of one model.

    Args:
        run: rows of one key → an image, or whatever the model makes, for each, or what is wrong with it; called in
            ``thread``, one at a time.
        largest: rows in one call at the most.
        room: rows that may wait.
        patience: seconds that a call which is not full waits for more rows.
    """

    def __init__(self, run: Run, thread: Executor, largest: int, room: int, patience: float, metrics: Metrics) -> None:
        self._run, self._thread, self._metrics = run, thread, metrics
        self._largest, self.room, self._patience = largest, room, patience
        self._waiting = deque[_Waiting]()
        self._some, self._enough = asyncio.Event(), asyncio.Event()

    async def make(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Waits for what ``run`` makes of the rows. Cancelled, it gives up their places.

        Raises QueueFullError, and whatever ``run`` raises of these rows.
        """
        if len(self._waiting) + len(rows) > self.room:
            raise QueueFullError
        job = _Job([np.empty(0)] * len(rows), len(rows))
        self._waiting.extend(_Waiting(job, place, row) for place, row in enumerate(rows))
        self._count()
        try:
            await job.done
        finally:  # cancelled, or failed with a part of it
            self._waiting = deque(one for one in self._waiting if one.job is not job)
            self._count()
        return job.made

    async def work(self) -> None:
        """Runs what waits, until it is cancelled."""
        while True:
            await self._some.wait()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._enough.wait(), self._patience)
            if batch := self._take():
                self._metrics.batches.add(len(batch))
                await self._make(batch)

    def _count(self) -> None:
        count = self._metrics.waiting = len(self._waiting)
        for event, least in ((self._some, 1), (self._enough, self._largest)):
            if count >= least:
                event.set()
            else:
                event.clear()

    def _take(self) -> list[_Waiting]:
        """The first that waits, and those behind it that may share its run."""
        taken, left = list[_Waiting](), deque[_Waiting]()
        for one in self._waiting:
            fits = len(taken) < self._largest and (not taken or one.row.key == taken[0].row.key)
            (taken if fits else left).append(one)
        self._waiting = left
        self._count()
        return taken

    async def _make(self, batch: Sequence[_Waiting]) -> None:
        """One run. Where it fails, each request has one of its own: what is wrong with one fails no other."""
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(self._thread, self._run, [one.row for one in batch])
        except Exception as error:
            jobs = {id(one.job): one.job for one in batch}
            if len(jobs) == 1:
                _fail(batch[0].job, error)
                return
            for job in jobs.values():
                await self._make([one for one in batch if one.job is job])
            return
        for one, image in zip(batch, made, strict=True):
            if isinstance(image, Exception):
                _fail(one.job, image)
                continue
            one.job.made[one.place] = image
            one.job.left -= 1
            if not one.job.left and not one.job.done.done():  # it may be cancelled meanwhile
                one.job.done.set_result(None)


def _fail(job: _Job, error: Exception) -> None:
    if not job.done.done():
        job.done.set_exception(error)
