"""Packages of npm that a page is made with: from the registry once, and only those whose hash stands in the source."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from edge_sampler.runtime import UserError
from edge_sampler.runtime.page import npm
from edge_sampler.runtime.page.folder import ONNX_RUNTIME, TOKENIZERS
from tests.runtime.test_page import package, page


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """What a registry serves by path, and the paths that it was asked for."""
    served, asked = dict[str, bytes](), list[str]()

    class Registry(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = served.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/mirror/")
        monkeypatch.setenv("EDGE_SAMPLER_CACHE", str(tmp_path / "cache"))
        yield served, asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("of", [ONNX_RUNTIME, TOKENIZERS])
def test_a_package_is_downloaded_once(
    registry: tuple[dict[str, bytes], list[str]], tmp_path: Path, of: npm.Package
) -> None:
    served, asked = registry
    _, tarball = package(tmp_path / "package", of)
    integrity = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    path = f"/mirror/{of.name}/-/{of.name.split('/')[-1]}-{of.version}.tgz"
    served[path] = tarball
    for _ in range(2):
        version, files = npm.files_of(replace(of, integrity=integrity))
        assert (version, set(files)) == (of.version, set(of.files))
        assert files[of.files[0]] == f"// {of.files[0]}".encode()
    assert asked == [path]


def test_a_package_that_another_process_fetched_meanwhile_is_no_error(
    registry: tuple[dict[str, bytes], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served, _ = registry
    path = f"onnxruntime-web-{ONNX_RUNTIME.version}.tgz"
    served[f"/mirror/onnxruntime-web/-/{path}"] = package(tmp_path / "package", ONNX_RUNTIME)[1]
    kept = tmp_path / "cache" / "npm" / "onnxruntime-web" / path

    def meanwhile(*_: object) -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(served[f"/mirror/onnxruntime-web/-/{path}"])

    monkeypatch.setattr(npm, "_check", meanwhile)
    assert npm.files_of(ONNX_RUNTIME)[0] == ONNX_RUNTIME.version


def test_a_tampered_package_is_refused_and_not_kept(
    registry: tuple[dict[str, bytes], list[str]], made: Path, tmp_path: Path
) -> None:
    """With the hash that stands in the source: only the registry's own file has it."""
    served, asked = registry
    served[f"/mirror/onnxruntime-web/-/onnxruntime-web-{ONNX_RUNTIME.version}.tgz"] = package(
        tmp_path / "package", ONNX_RUNTIME
    )[1]
    for _ in range(2):
        with pytest.raises(UserError, match="SHA-512"):
            page(made, tmp_path / "site")
    assert len(asked) == 2
    assert not list(tmp_path.glob("cache/**/*.tgz"))
    assert not (tmp_path / "site").exists()


def test_a_cache_that_was_changed_is_noticed(
    registry: tuple[dict[str, bytes], list[str]], made: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "cache" / "npm" / "onnxruntime-web" / f"onnxruntime-web-{ONNX_RUNTIME.version}.tgz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(package(tmp_path / "package", ONNX_RUNTIME)[1])
    with pytest.raises(UserError, match=r"\.tgz is not .*SHA-512"):
        page(made, tmp_path / "site")


def test_no_registry_is_one_line(registry: object, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--onnxruntime-web a folder or tarball"):
        page(made, tmp_path / "site")
