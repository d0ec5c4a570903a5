"""Who makes shards, on a pool and a cluster that only remember: how many wait, and how it ends."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import pytest

from edge_sampler.runtime import interrupt
from edge_sampler.runtime.backends.onnxrt_module import THREADS
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.generate import on_ray as of_ray
from edge_sampler.runtime.generate import workers as of_workers
from edge_sampler.runtime.generate.on_ray import on_ray, reachable
from edge_sampler.runtime.generate.workers import end_with_parent, in_processes, start


def tasks(count: int, taken: list[int]) -> Iterator[Any]:
    """``taken`` are those that were asked for."""
    for number in range(count):
        taken.append(number)
        yield number, f"shard {number}"


def blocks_ctrl_c() -> bool:
    return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Pool:
    """Its futures are done when it is told; ``ended`` is how it was shut down."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.futures, self.fails = list[Future[Any]](), fails
        self.made, self.ended, self.kept = list[Any](), list[Any](), list[bool]()

    def __call__(self, *arguments: Any, **settings: Any) -> "Pool":
        self.made.append((arguments, settings))
        return self

    def submit(self, make: Callable[..., Any], *task: Any) -> "Future[Any]":
        self.kept.append(not hasattr(signal, "pthread_sigmask") or blocks_ctrl_c())
        self.futures.append(Future())
        if self.fails:
            self.futures[-1].set_exception(self.fails)
        else:
            self.futures[-1].set_result(make(*task))
        return self.futures[-1]

    def shutdown(self, **settings: Any) -> None:
        self.ended.append(settings)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who was terminated, of two workers."""
    terminated = list[str]()
    known = [SimpleNamespace(terminate=lambda name=name: terminated.append(name)) for name in "ab"]
    monkeypatch.setattr(multiprocessing, "active_children", lambda: known)
    return terminated


def pooled(monkeypatch: pytest.MonkeyPatch, pool: Pool, cores: int | None = 9) -> None:
    monkeypatch.setattr(of_workers, "ProcessPoolExecutor", pool)
    monkeypatch.setattr(of_workers, "make", lambda number, name: (number, name))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)


@pytest.mark.parametrize(
    ("workers", "cores", "threads"), [(1, 9, 9), (2, 9, 4), (9, 9, 1), (10, 9, 1), (1, None, 1), (4, 2, 1)]
)
def test_workers_share_the_cores(
    workers: int, cores: int | None, threads: int, children: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool()
    pooled(monkeypatch, pool, cores)
    made: list[Any] = [*in_processes(tasks(3, []), workers)]
    assert sorted(made) == [(n, f"shard {n}") for n in range(3)]
    ((number, context), settings) = pool.made[0]
    assert (number, context.get_start_method()) == (workers, "spawn")
    assert settings == {"initializer": start, "initargs": (threads,)}
    assert (children, pool.ended) == (["a", "b"], [{"cancel_futures": True}])
    assert pool.kept == [True] * 3


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs masks of signals")
def test_ctrl_c_does_not_come_to_children() -> None:
    """A worker whose Python is still importing would tell of it at length."""
    asked = "import os, signal; os.kill(os.getpid(), signal.SIGINT); print('still there')"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does without
    try:
        with interrupt.kept_from_children():
            child = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (child.returncode, child.stdout, child.stderr) == (0, "still there\n", "")
    assert not blocks_ctrl_c()


def test_as_many_tasks_wait_as_there_are_workers(children: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Conditions of a million samples are not all in memory at once."""
    pool, taken = Pool(), list[int]()
    pooled(monkeypatch, pool)
    first, most = wait, list[int]()

    def one_at_a_time(running: set[Any], return_when: str) -> tuple[set[Any], set[Any]]:
        assert return_when == "FIRST_COMPLETED"
        most.append(len(running))
        done, _ = first(running, return_when=return_when)
        one = min(done, key=pool.futures.index)
        return {one}, running - {one}

    monkeypatch.setattr(of_workers, "wait", one_at_a_time)
    made: Iterator[Any] = in_processes(tasks(9, taken), 2)
    assert next(made) == (0, "shard 0")
    assert taken == [0, 1, 2, 3]
    assert next(made) == (1, "shard 1")
    assert taken == [0, 1, 2, 3, 4]
    assert [number for number, _ in made] == [2, 3, 4, 5, 6, 7, 8]
    assert most == [4, 4, 4, 4, 4, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("error", "raised", "told"),
    [
        (BrokenProcessPool("ended"), UserError, "a worker died, .*: take fewer --workers or a smaller --batch"),
        (UserError("seed 3"), UserError, "^seed 3$"),
        (KeyError("ours"), KeyError, "ours"),
    ],
    ids=repr,
)
def test_the_first_error_ends_all(
    error: Exception, raised: type[Exception], told: str, children: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Pool(error)
    pooled(monkeypatch, pool)
    with pytest.raises(raised, match=told):
        list(in_processes(tasks(9, []), 2))
    assert (children, pool.ended) == (["a", "b"], [{"cancel_futures": True}])


def test_a_worker_begins_deaf_to_ctrl_c_and_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    before, joined, ended = signal.getsignal(signal.SIGINT), list[int](), threading.Event()
    monkeypatch.setenv(THREADS, "")  # so that it is as it was behind this
    monkeypatch.delenv(THREADS)
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(join=lambda: joined.append(1)))
    monkeypatch.setattr(os, "_exit", lambda status: joined.append(10 + status) or ended.set())  # type: ignore[func-returns-value]
    daemons, thread = list[bool](), threading.Thread
    monkeypatch.setattr(threading, "Thread", lambda **told: daemons.append(told["daemon"]) or thread(**told))  # type: ignore[func-returns-value]
    try:
        start(3)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert os.environ[THREADS] == "3"
        assert ended.wait(60)
        assert (joined, daemons) == ([1, 11], [True])
        start(4)
        assert os.environ[THREADS] == "3"  # what the user set
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_has_no_parent_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: None)
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("it ended"))
    end_with_parent()


# ---- Ray, where it is not installed


class TaskError(Exception):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Ray:
    """A cluster of these resources, which remembers. Each task is done at once, and told of in its turn."""

    exceptions = SimpleNamespace(RayTaskError=TaskError)

    def __init__(self, refuses: Exception | None = None, fails: Exception | None = None, **resources: float) -> None:
        self.resources, self.refuses, self.fails = resources, refuses, fails
        self.running, self.inits, self.tasks, self.most = False, list[Any](), list[Any](), list[int]()

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **settings: Any) -> None:
        self.inits.append(settings)
        if self.refuses:
            raise self.refuses
        self.running = True

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **settings: Any) -> Any:
        self.tasks.append(settings)
        return lambda make: SimpleNamespace(remote=lambda *task: make(*task))

    def wait(self, running: list[Any]) -> tuple[list[Any], list[Any]]:
        self.most.append(len(running))
        return running[:1], running[1:]

    def get(self, done: list[Any]) -> list[Any]:
        if self.fails:
            raise self.fails
        return done

    def shutdown(self) -> None:
        self.running = False


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ray]:
    def make(**told: Any) -> Ray:
        ray = Ray(**told)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(of_ray, "make", lambda number, name: (number, name))
        monkeypatch.setattr(of_ray, "reachable", lambda address: None)
        return ray

    return make


@pytest.mark.parametrize(
    ("resources", "needs"),
    [({"CPU": 4}, {"num_cpus": 1}), ({"GPU": 2}, {"num_gpus": 1}), ({"GPU": 0}, {"num_cpus": 1})],
)
def test_a_cluster_makes_what_is_asked_and_no_more_at_a_time(
    resources: dict[str, float], needs: dict[str, int], cluster: Callable[..., Ray]
) -> None:
    ray, taken = cluster(**resources), list[int]()
    made: Iterator[Any] = on_ray(tasks(5, taken), 1, "auto")
    assert next(made) == (0, "shard 0")
    assert (taken, ray.running) == ([0, 1], True)
    assert [number for number, _ in made] == [1, 2, 3, 4]
    assert ray.most == [2, 2, 2, 2, 1]
    assert ray.inits == [{"address": "auto", "log_to_driver": False}]
    assert ray.tasks == [{**needs, "max_retries": -1, "runtime_env": {"env_vars": {THREADS: "1"}}}]
    assert not ray.running


def test_a_cluster_of_the_callers_stays(cluster: Callable[..., Ray]) -> None:
    ray = cluster()
    ray.running = True
    assert len(list(on_ray(tasks(2, []), 8, "auto"))) == 2
    assert (ray.inits, ray.running) == ([], True)


@pytest.mark.parametrize("refuses", [ConnectionError, ValueError, RuntimeError])
def test_no_cluster_is_told_in_rays_first_line(refuses: type[Exception], cluster: Callable[..., Ray]) -> None:
    cluster(refuses=refuses("nobody\nis there"))
    with pytest.raises(UserError, match=r"^--ray auto: no cluster answers \(nobody\)$"):
        next(on_ray(tasks(1, []), 1, "auto"))


def test_an_error_of_a_task_is_the_users(cluster: Callable[..., Ray]) -> None:
    for cause, raised in ((UserError("seed 3"), UserError), (KeyError("ours"), TaskError)):
        ray = cluster(fails=TaskError(cause))
        with pytest.raises(raised):
            list(on_ray(tasks(1, []), 1, "auto"))
        assert not ray.running


def test_without_ray_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--ray needs Ray: pip install .*\[ray\]"):
        next(on_ray(tasks(1, []), 1, "auto"))


def test_an_address_is_tried_before_ray_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        there = listening.getsockname()[1]
        reachable(f"127.0.0.1:{there}")
    asked, create = list[Any](), socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *told, **more: asked.append(told) or create(*told, **more))  # type: ignore[func-returns-value]
    for address in ("auto", "local", "ray://host:10001"):  # those are Ray's own to find
        reachable(address)
    assert not asked
    for address in (f"127.0.0.1:{there}", "127.0.0.1:99999", "127.0.0.1:x"):
        with pytest.raises(UserError, match=f"^--ray {address}: no cluster answers"):
            reachable(address)
    with pytest.raises(UserError, match="--ray is empty"):
        reachable("")
