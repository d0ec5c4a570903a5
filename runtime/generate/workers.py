"""Shards made by several processes of this machine. Each gives back what it wrote; the first error ends all."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.backends.onnxrt_module import THREADS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate.job import Job, Shard
from edge_sampler.runtime.generate.shard import make


def in_processes(tasks: Iterator[tuple[Job, str]], workers: int) -> Iterator[Shard]:
    """What ``make`` returns, as tasks end. Raises UserError as it does, and where a process dies."""
    context = multiprocessing.get_context("spawn")  # a fork would share the parent's threads and locks
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, context, initializer=start, initargs=(threads,))
    try:
        running: set[Future[Shard]] = set()
        while True:
            for task in islice(tasks, 2 * workers - len(running)):  # one more waits for each, with its conditions
                with interrupt.kept_from_children():  # the first one starts the workers
                    running.add(pool.submit(make, *task))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (one.result() for one in done)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died, as it does where memory runs out: take fewer --workers or a smaller --batch; the same "
            "command goes on from what is there"
        ) from error
    finally:  # done, or an error, or an interruption: then nobody waits for what is left
        for child in multiprocessing.active_children():
            child.terminate()
        pool.shutdown(cancel_futures=True)


def start(threads: int) -> None:
    """Runs first in each worker: it sets the threads, ends with the parent, and leaves Ctrl-C to that."""
    os.environ.setdefault(THREADS, str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
