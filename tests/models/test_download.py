"""Downloads from a small server on this machine: whole, resumed, cut off, shared, refused."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edge_sampler import models
from edge_sampler.models.download import NotFoundError, cached, fetch
from edge_sampler.models.zoo import WEIGHTS
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError

CONTENT = bytes(range(256)) * 10_000


@dataclass
class Server:
    url: str = ""
    content: bytes = CONTENT
    send: int = len(CONTENT)  # bytes before the connection is cut
    wait: float = 0.0  # seconds before the first
    tag: str | None = '"one"'  # its ETag
    says: str = "bytes {start}-{last}/{total}"  # its Content-Range of a part
    compares: bool = True  # whether it heeds If-Range
    length: bool = True  # whether it says how many bytes come
    headers: dict[str, str] = field(default_factory=dict)  # more of them
    refuses: int = 0  # the status that it sends instead
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            same = self.headers.get("If-Range") == state.tag or not state.compares
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same else 0
            if state.refuses or self.path.endswith("absent.pkl"):
                self.send_error(state.refuses or 404)
                return
            if start and start >= len(state.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(state.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                total = len(state.content)
                self.send_header("Content-Range", state.says.format(start=start, last=total - 1, total=total))
            for name, value in {**({"ETag": state.tag} if state.tag else {}), **state.headers}.items():
                self.send_header(name, value)
            if state.length:
                self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            time.sleep(state.wait)
            with suppress(ConnectionError):  # of a client that wants no such content
                self.wfile.write(state.content[start : start + state.send])

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}/weights.pkl"
        yield state
        http.shutdown()


def files(folder: Path) -> list[str]:
    return [
        path.name for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".sha256", ".from")
    ]


def test_a_file_is_downloaded_once(server: Server) -> None:
    assert fetch(server.url).read_bytes() == CONTENT
    assert fetch(server.url).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_of_several_that_want_a_file_one_downloads_it(server: Server) -> None:
    """As the processes of torchrun do on a fresh machine."""
    server.wait = 0.3
    with ThreadPoolExecutor() as pool:
        kept = list(pool.map(fetch, [server.url] * 3))
    assert [path.read_bytes() for path in kept] == [CONTENT] * 3
    assert server.ranges == [None]


def test_a_cut_download_goes_on_from_where_it_was(server: Server, tmp_path: Path) -> None:
    server.send = 1_000_000
    with pytest.raises(UserError, match="1000000 of 2560000 bytes"):
        fetch(server.url)
    assert files(tmp_path) == ["weights.pkl.part"]
    server.send = len(CONTENT)
    assert fetch(server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]
    assert files(tmp_path) == ["weights.pkl"]


@pytest.mark.parametrize("leftover", [CONTENT[:1000], CONTENT, CONTENT + b"more", b"x" * 1000])
def test_a_leftover_of_unknown_origin_is_not_taken(server: Server, tmp_path: Path, leftover: bytes) -> None:
    kept = cached(server.url)
    kept.parent.mkdir(parents=True)
    kept.with_name("weights.pkl.part").write_bytes(leftover)
    assert fetch(server.url).read_bytes() == CONTENT
    assert (server.ranges, files(tmp_path)) == ([None], ["weights.pkl"])


@pytest.mark.parametrize("tag", ['"two"', 'W/"one"', None])
def test_two_files_are_never_spliced(server: Server, tag: str | None) -> None:
    """The server has another file when the download goes on."""
    server.send = 1_000_000
    with pytest.raises(UserError, match="1000000 of 2560000 bytes"):
        fetch(server.url)
    server.send, server.tag, server.content = len(CONTENT), tag, CONTENT[::-1]
    assert fetch(server.url).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ['"two"', None])
def test_a_part_of_another_file_is_not_joined_on(server: Server, tag: str | None) -> None:
    """Though the server does not heed If-Range."""
    server.send = 1_000_000
    with pytest.raises(UserError, match="1000000 of 2560000 bytes"):
        fetch(server.url)
    server.send, server.tag, server.content, server.compares = len(CONTENT), tag, CONTENT[::-1], False
    assert fetch(server.url).read_bytes() == CONTENT[::-1]
    assert server.ranges == [None, "bytes=1000000-", None]


@pytest.mark.parametrize(
    "says",
    [
        "bytes 0-{last}/{total}",
        "bytes 999999-{last}/{total}",
        "lines {start}-{last}/{total}",
        "bytes {start}-1999999/{total}",
        "bytes {start}-{last}/9000000",
        "bytes {start}-{last}/*",
        "bytes {start}-",
    ],
)
def test_another_part_than_asked_for_is_refused(server: Server, tmp_path: Path, says: str) -> None:
    server.send = 1_000_000
    with pytest.raises(UserError, match="of 2560000 bytes"):
        fetch(server.url)
    server.send, server.says = len(CONTENT), says
    with pytest.raises(UserError, match="another part than from byte 1000000 on"):
        fetch(server.url)
    assert files(tmp_path) == ["weights.pkl.part"]


def test_a_leftover_beyond_the_file_is_dropped(server: Server) -> None:
    server.send = 1_000_000
    with pytest.raises(UserError):
        fetch(server.url)
    server.content, server.send = CONTENT[:500_000], 500_000
    assert fetch(server.url).read_bytes() == CONTENT[:500_000]


def test_a_file_of_unknown_length_is_refused(server: Server, tmp_path: Path) -> None:
    """Whether all of it came could not be known."""
    server.length = False
    with pytest.raises(UserError, match="does not say how long"):
        fetch(server.url)
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("content", "headers"),
    [(b"", {}), (CONTENT, {"Content-Type": "text/html; charset=utf-8"}), (CONTENT, {"Content-Encoding": "gzip"})],
)
def test_a_page_or_nothing_is_no_file(server: Server, tmp_path: Path, content: bytes, headers: dict[str, str]) -> None:
    """Such as that of a login, or of a proxy."""
    server.content, server.headers = content, headers
    with pytest.raises(UserError, match=rf"the server sends no such file, but {len(content)} bytes of "):
        fetch(server.url)
    assert not files(tmp_path)


def test_a_damaged_download_says_how_to_get_it_anew(server: Server, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"damaged .*\. It came from {server.url}: delete it, and it is downloaded again"
    ):
        models.load(server.url)
    kept = cached(server.url)
    assert kept.is_file()
    kept.unlink()
    server.content = (WEIGHTS.parent.parent / "tests" / "data" / "official-format-tiny.pkl").read_bytes()
    assert models.load(server.url).spec.name == "weights"


def test_a_kept_file_that_changed_is_refused(server: Server) -> None:
    kept = fetch(server.url)
    kept.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(UserError, match="is not the file that was downloaded"):
        fetch(server.url)
    kept.unlink()
    server.content = CONTENT[::-1]
    assert fetch(server.url).read_bytes() == CONTENT[::-1]
    assert fetch(server.url).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(
    "url", ["http://host/a b.pkl", "http://host:port/x.pkl", "http://[::1/x.pkl", "nonsense://x/y"]
)
def test_an_address_that_is_none_is_one_line(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="cannot download"):
        fetch(url)


@pytest.mark.parametrize("url", ["http://host/../../x.pkl", "http://host/", "http://host/..", "http://host/a\\..\\b"])
def test_no_address_leaves_the_cache(url: str) -> None:
    kept = cached(url)
    assert kept.parent.parent == cache_folder() / "downloads"
    assert kept.name not in ("", ".", "..")
    assert not set(kept.name) & set("/\\:")


def test_what_is_not_there_is_named(server: Server, tmp_path: Path) -> None:
    url = server.url.replace("weights", "absent")
    with pytest.raises(UserError, match=r"absent\.pkl.*put the file at .*cache/downloads/.*/absent\.pkl"):
        fetch(url)
    assert not files(tmp_path)


def test_that_nothing_is_there_is_told_apart(server: Server) -> None:
    with pytest.raises(NotFoundError):
        fetch(server.url.replace("weights", "absent"))
    server.send = 1_000_000
    with pytest.raises(UserError) as cut:
        fetch(server.url)
    for server.refuses in (403, 500):  # also when it goes on
        with pytest.raises(UserError, match="cannot download") as refused:
            fetch(server.url)
        assert type(refused.value) is type(cut.value) is UserError


def test_progress_is_no_result(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(server.url)
    shown = capfd.readouterr()
    assert (shown.out, "weights.pkl" in shown.err) == ("", True)


def test_a_model_is_loaded_from_its_address(server: Server) -> None:
    server.content = (WEIGHTS / "edm-digits.safetensors").read_bytes()
    server.send = len(server.content)
    spec = models.load(server.url.replace("weights.pkl", "their-digits.safetensors")).spec
    assert (spec.name, spec.weights_sha256) == ("their-digits", models.load("edm-digits").spec.weights_sha256)


def test_files_of_one_name_and_two_addresses_are_two() -> None:
    assert (
        cached("https://a.org/x/model.pkl") != cached("https://a.org/y/model.pkl") != cached("https://b.org/model.pkl")
    )
