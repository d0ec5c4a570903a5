"""A headless Chromium, driven over a pipe by the DevTools protocol: it needs no library beside the browser."""

import base64
import functools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
LOCAL_ONLY = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # no other host is found


def found() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """A tab. ``call`` is one command of https://chromedevtools.github.io/devtools-protocol/."""

    def __init__(self, write: Any, read: Any) -> None:
        self._write, self._read, self._count, self._session = write, read, 0, ""

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        self._count += 1
        to = {"sessionId": self._session} if self._session else {}
        self._write.write(
            json.dumps({"id": self._count, "method": method, "params": parameters, **to}).encode() + b"\0"
        )
        self._write.flush()
        while True:
            said = bytearray()
            while (byte := self._read.read(1)) != b"\0":
                assert byte, "Chromium ended"
                said += byte
            answer = json.loads(said)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: Mapping[str, Any] = answer["result"]
                return result

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, url: str) -> None:
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """What a JavaScript expression gives, or a promise of it, as JSON."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a JavaScript expression holds; the page's status line is told where it does not."""
        polled = f"""new Promise((done) => {{
            const end = performance.now() + {seconds * 1000};
            const look = () => {{
                let holds = false;
                try {{ holds = Boolean({condition}); }} catch {{}}
                holds || performance.now() > end ? done(holds) : setTimeout(look, 50);
            }};
            look();
        }})"""
        assert self.run(polled), self.run("document.body.innerText")

    def screenshot(self, path: Path, full: bool = True) -> None:
        data = self.call("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))


@contextmanager
def browser(*options: str) -> Iterator[Page]:
    """A fresh one, without a profile; ``--no-sandbox`` since containers' root has no other way."""
    program = found()
    assert program
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    arguments = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars"]
    arguments += [f"--host-resolver-rules={LOCAL_ONLY}", "--no-first-run", "--disable-dev-shm-usage", *options]
    # Chromium reads from descriptor 3 and writes to 4, whichever these are here
    shell = ["sh", "-c", f'exec "$@" 3</dev/fd/{to_read} 4>/dev/fd/{from_write}', "sh", *arguments]
    process = subprocess.Popen(shell, pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    with os.fdopen(to_write, "wb") as write, os.fdopen(from_read, "rb") as read:
        page = Page(write, read)
        try:
            page.attach()
            yield page
        finally:
            page.call("Browser.close") if process.poll() is None else None
            process.wait(10)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a plain server of that folder's files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
