"""Shards made on a cluster of Ray, whose nodes share the bundle's folder and that of the shards.

A task whose node dies is run again elsewhere, by Ray. It replaces what it wrote by the same bytes.
"""

import socket
from collections.abc import Iterator
from itertools import islice

from edge_sampler.runtime.backends.onnxrt_module import THREADS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate.job import Job, Shard
from edge_sampler.runtime.generate.shard import make
from edge_sampler.runtime.install import install_command


def on_ray(tasks: Iterator[tuple[Job, str]], workers: int, address: str) -> Iterator[Shard]:
    """As ``in_processes``. ``address`` is as ``ray.init`` takes it: HOST:PORT, ``auto``, or ``local`` for a new one."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(f"--ray needs Ray: {install_command('ray')}") from error
    started_here = not ray.is_initialized()
    if started_here:
        reachable(address)
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray {address}: no cluster answers ({str(error).splitlines()[0]})") from error
    try:
        needs = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        environment = {"env_vars": {THREADS: "1"}}
        remote = ray.remote(**needs, max_retries=-1, runtime_env=environment)(make)
        running: list[ray.ObjectRef[Shard]] = []
        while True:
            running += [remote.remote(*task) for task in islice(tasks, 2 * workers - len(running))]
            if not running:
                return
            done, running = ray.wait(running)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    finally:
        if started_here:
            ray.shutdown()


def reachable(address: str) -> None:
    """Raises UserError where nobody listens at HOST:PORT, for which Ray itself would wait for minutes; and for none."""
    if not address:
        raise UserError("--ray is empty: name HOST:PORT, auto, or local")
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address:
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(f"--ray {address}: no cluster answers ({error})") from error
