"""How a server begins and ends, and what it does where more is asked than it can take."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_sampler.runtime.__main__ import main
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main
from tests.runtime.serving import Served, alone, asked, eventually, serving

ROOT = Path(__file__).parent.parent.parent
HEAD = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def expected(made: Path) -> np.ndarray:
    """The images of seeds 0 to 63, each made alone."""
    return alone(made)


def test_a_full_queue_and_a_client_that_goes_away(made: Path, expected: np.ndarray) -> None:
    with ThreadPoolExecutor(4) as pool, serving([made], shut=True, queue=2, batch=1) as served:
        running = pool.submit(served.infer, "digits", {"seeds": [1]})
        eventually(lambda: len(served.gate.runs) == 1)
        waiting, gone = pool.submit(served.infer, "digits", {"seeds": [2]}), served.connect()
        gone.request("POST", "/v2/models/digits/infer", json.dumps(asked({"seeds": [3]})))
        eventually(lambda: served.metric("queue_images", model="digits") == 2)
        full = served.infer("digits", {"seeds": [4]})
        assert (full.status, "queue of digits is full" in full.error) == (429, True)
        gone.sock.close()
        eventually(lambda: served.metric("queue_images", model="digits") == 1)
        assert served.metric("requests_total", model="digits", outcome="cancelled") == 1
        taken = pool.submit(served.infer, "digits", {"seeds": [5]})  # the place that was left
        eventually(lambda: served.metric("queue_images", model="digits") == 2)
        served.gate.opened.set()
        for seed, future in ((1, running), (2, waiting), (5, taken)):
            np.testing.assert_array_equal(future.result().array, expected[seed : seed + 1])
        assert served.metric("requests_total", model="digits", outcome="queue_full") == 1
    assert [rows[0].start for rows in served.gate.runs] == [1, 2, 5]


def test_ready_is_said_when_it_is_warm(made: Path, expected: np.ndarray) -> None:
    with serving([made], shut=True, warm=False) as served:
        eventually(lambda: len(served.gate.runs) == 1)  # the usual batch
        assert len(served.gate.runs[0]) == 4
        assert served.ask("/v2/health/live").status == 200
        for path in ("/v2/health/ready", "/v2/models/digits/ready"):
            assert (served.ask(path).status, served.ask(path).json["ready"]) == (503, False)
        refused = served.infer("digits", {"seeds": [7]})
        assert (refused.status, "not ready yet" in refused.error) == (503, True)
        served.gate.opened.set()
        eventually(lambda: served.ask("/v2/health/ready").status == 200)
        np.testing.assert_array_equal(served.infer("digits", {"seeds": [7]}).array, expected[7:8])


def test_what_was_accepted_is_answered_before_the_server_ends(made: Path, expected: np.ndarray) -> None:
    with ThreadPoolExecutor(2) as pool, serving([made], shut=True) as served:
        accepted = pool.submit(served.infer, "digits", {"seeds": range(9)})  # three runs
        eventually(lambda: len(served.gate.runs) == 1)
        served.servers[0].handle_exit(signal.SIGTERM, None)
        time.sleep(0.5)  # a server that closes its door does so by now
        assert served.ask("/v2/health/ready").status == 503
        assert served.ask("/v2/health/live").status == 200
        refused = served.infer("digits", {"seeds": [1]})
        assert (refused.status, "the server is ending" in refused.error) == (503, True)
        assert not accepted.done()
        served.gate.opened.set()
        np.testing.assert_array_equal(accepted.result().array, expected[:9])
        served.thread.join(60)
        assert not served.thread.is_alive()


def test_a_second_signal_ends_it_at_once(made: Path) -> None:
    """What waits is told so; the status is not 0."""

    def end_twice() -> None:
        with ThreadPoolExecutor(1) as pool, serving([made], shut=True) as served:
            accepted = pool.submit(served.infer, "digits", {"seeds": range(9)})
            eventually(lambda: len(served.gate.runs) == 1)
            for _ in range(2):
                served.servers[0].handle_exit(signal.SIGTERM, None)
            assert (accepted.result().status, "the server ended" in accepted.result().error) == (503, True)

    with pytest.raises(SystemExit, match="143"):
        end_twice()


def test_sigterm_ends_the_command_in_order(made: Path, expected: np.ndarray) -> None:
    """What is accepted is answered; what has come in part waits for nobody, and uvicorn complains of nothing."""
    command = [sys.executable, "-m", "edge_sampler.runtime", "serve", str(made), "--port", "0", "--batch", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        port = int(process.stdout.readline().rpartition(":")[2])
        assert "digits: ready, by ONNX Runtime" in process.stdout.readline()
        served = Served(port, [], None, None)  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool, socket.create_connection(("127.0.0.1", port), 60) as half:
            half.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{")
            accepted = pool.submit(served.infer, "digits", {"seeds": range(64)})
            eventually(lambda: served.metric("queue_images", model="digits") > 0)
            process.send_signal(signal.SIGTERM)
            assert half.recv(100).startswith(b"HTTP/1.1 503 ")
            np.testing.assert_array_equal(accepted.result().array, expected)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_a_bundle_that_is_replaced_is_served_as_it_was(copy: Path, expected: np.ndarray) -> None:
    with serving([copy]) as served:
        for path in copy.rglob("*"):
            path.write_bytes(b"another")
        shutil.rmtree(copy)
        np.testing.assert_array_equal(served.infer("copy", {"seeds": [7]}).array, expected[7:8])
        assert served.ask("/v2/models/copy").json["inputs"][0]["name"] == "seeds"
        assert served.ask("/v2/models/copy/image?seed=8").status == 200


def test_a_damaged_bundle_ends_the_server(copy: Path) -> None:
    content = bytearray((copy / "sampler.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "sampler.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"sampler\.onnx is not the file the manifest describes"), serving([copy]):
        pass


def test_a_bundle_that_cannot_be_served_ends_the_command(copy: Path) -> None:
    for arguments, message in (
        ((f"{copy}/nowhere",), "no bundle at .*/nowhere"),
        ((str(copy), "--port", "0", "--backend", "abacus"), "unknown backend 'abacus'"),
    ):
        with pytest.raises(UserError, match=message):
            run_main(main, "serve", *arguments)
