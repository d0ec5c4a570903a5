"""A Python that has imported PyTorch already, for tests that start programs: ``python()`` is what they start.

A process takes 4 seconds to import PyTorch and its exporter, as often as a test starts one. Here one process imports
them, and then waits: every program is a fork of it, with the arguments, folder, environment and streams that it was
started with. It imports all of our own code itself, as well as whatever is not in ``warm_up``.
Streams that are not UTF-8, options of Python, and HF_… beside libraries that are warm are for ``sys.executable``.
"""

import atexit
import gc
import json
import logging
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import typing
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

PAUSE = 0.01  # seconds between two looks at a program
MOST_BYTES = 2**20  # of a request


@cache
def python() -> str:
    """The path of a program that is started as ``sys.executable`` is: with -m NAME, -c CODE or FILE, and arguments.

    Its folder holds it alone, under the name ``python``. Where nothing can be forked it is ``sys.executable``.
    """
    if not hasattr(os, "fork"):
        return sys.executable
    folder = tempfile.mkdtemp(prefix="warm-")  # near the root: a socket's path has at most 107 letters
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, __file__, folder]
    server = subprocess.Popen(command, env=outside, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin
    assert server.stdout
    assert server.stdout.readline()
    program = Path(folder, "python")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{folder}" "$@"\n', "utf-8")
    program.chmod(0o755)

    def end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    atexit.register(end)
    return str(program)


def ask(folder: str, arguments: list[str]) -> None:
    """What ``python()`` starts: has the program run, and ends as it does. Signals are passed on to it."""
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(f"{folder}/socket")
        with server.makefile("rw") as stream:
            socket.send_fds(server, [b"."], [0, 1, 2])
            stream.write(json.dumps(request) + "\n")
            stream.flush()
            child = int(stream.readline())
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda number, _: os.kill(child, number))
            status = int(stream.readline())
    if status < 0:
        with suppress(OSError):  # of SIGKILL, which nothing can catch
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def serve(folder: str) -> dict[str, Any]:
    """Forks for every request, until standard input ends. In a fork that is to be the program, returns the request."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/socket")
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not os.fork():
                listener.close()
                if (request := watched(connection)) is not None:
                    return request
                os._exit(0)
            connection.close()
    with suppress(ChildProcessError):
        while os.wait():
            pass
    sys.exit()


def watched(connection: socket.socket) -> dict[str, Any] | None:
    """In a fork that is to be the program, returns the request; here, when that has ended, None.

    It is killed when its asker is gone.
    """
    with connection, connection.makefile("rw") as stream:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        request: dict[str, Any] = json.loads(stream.readline(MOST_BYTES))
        if not (child := os.fork()):
            for number, given in enumerate(streams):
                os.dup2(given, number)
                os.close(given)
            return request
        for given in streams:
            os.close(given)
        stream.write(f"{child}\n")
        stream.flush()
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if select.select([connection], [], [], PAUSE)[0]:  # it says nothing more: it is gone
                os.kill(child, signal.SIGKILL)
                os._exit(0)
        stream.write(f"{os.waitstatus_to_exitcode(ended[1])}\n")
        stream.flush()
    return None


def become(request: dict[str, Any]) -> int:
    """This process runs what was asked for, as Python runs it, and returns its exit status."""
    sys.stdin, sys.stdout = stream(0, "r"), stream(1, "w")
    sys.stderr = stream(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    kind, *arguments = request["arguments"]
    if kind == "-u":  # as torchrun says
        kind, *arguments = arguments
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        if kind == "-m":
            sys.argv, sys.path[:0] = arguments, [os.getcwd(), *paths]
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            main = sys.modules["__main__"] = ModuleType("__main__")
            sys.argv, sys.path[:0] = ["-c", *arguments[1:]], ["", *paths]
            exec(compile(arguments[0], "<string>", "exec"), vars(main))
        else:
            sys.argv, sys.path[:0] = [kind, *arguments], [str(Path(kind).resolve().parent), *paths]
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def stream(number: int, mode: str, **how: Any) -> Any:
    """A standard stream: what the server had for it knew another file."""
    return open(number, mode, encoding="utf-8", closefd=False, **how)


def warm_up() -> None:
    """Imports what a first export imports, and does once what PyTorch's exporter does for each network.

    ONNX Runtime is left out: it starts a thread, which no fork has.
    """
    import torch
    from tqdm import tqdm  # type: ignore[import-untyped]

    remember(setattr)
    with patch.object(tqdm, "monitor_interval", 0), StringIO() as nowhere, redirect_stderr(nowhere):
        logging.disable()
        torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.zeros(2, 1),), dynamo=True, verbose=False)
        logging.disable(logging.NOTSET)
    gc.freeze()
    assert threading.active_count() == 1


def remember(put: Callable[[object, str, object], None]) -> None:
    """PyTorch's exporter reads the source of all operators once, and looks once for those that are made of others.

    It did so for each network: of a small one, that is half the work. Each operator that is made of others gets a
    kernel for the time of an export, whose annotations are evaluated each time: typing's Callable is remembered.
    """
    import torch
    from torch._export import utils
    from torch.export import decomp_utils, exported_program
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    put(ONNXRegistry, "from_torchlib", staticmethod(cache(ONNXRegistry.from_torchlib)))
    composite = cache(utils._collect_all_valid_cia_ops)
    for module in (exported_program, decomp_utils):
        put(module, "_collect_all_valid_cia_ops", composite)
    put(torch._ops, "Callable", typing.Callable)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        ask(sys.argv[1], sys.argv[2:])
    del sys.path[0]  # this file's folder
    warm_up()
    status = become(serve(sys.argv[1]))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status & 0xFF)  # Python would take all modules apart yet: that takes longer than most programs
