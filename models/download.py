"""Downloads weights into a cache folder: resumable, atomic, with progress."""

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from edge_sampler.models.progress import Screen
from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.verified import file_sha256

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20


def cached(url: str) -> Path:
    """Where the file of ``url`` is kept, once it is there: a folder for each address."""
    name = re.sub(r"[^\w.-]", "_", url.rpartition("/")[2]).lstrip(".") or "file"
    return cache_folder() / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


class NotFoundError(UserError):
    """The server says that there is no such file."""


def fetch(url: str, target: Path | None = None) -> Path:
    """The file of ``url``, kept at ``target`` (by default in the cache), downloaded first if it is not there.

    An interrupted download leaves ``NAME.part``, from which the next call goes on while the server has the same file.
    Of several processes that want the file one downloads it and the others wait (``NAME.lock``). ``NAME.sha256`` holds
    the hash that it had when it was first used. Raises UserError naming the URL and the place when the file can be had
    from neither, and where it has changed since.
    """
    target = target or cached(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_beside(target, ".lock")):
            if not target.is_file():
                _beside(target, ".sha256").unlink(missing_ok=True)
                _download(url, _beside(target, ".part")).replace(target)
                _beside(target, ".part.from").unlink(missing_ok=True)
            _check_unchanged(target, _beside(target, ".sha256"))
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        kind = NotFoundError if getattr(error, "code", None) == HTTPStatus.NOT_FOUND else UserError
        raise kind(f"cannot download {url} ({reason}); put the file at {target}, or pass --weights FILE") from error
    return target


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _check_unchanged(target: Path, record: Path) -> None:
    found = file_sha256(target)
    if not record.exists():
        with writable(record) as new:
            new.write_text(found)
    elif record.read_text(encoding="utf-8") != found:
        raise UserError(
            f"{target} is not the file that was downloaded (its SHA-256 is not that of {record.name}): delete it, or "
            f"{record.name} where the change is meant"
        )


def _download(url: str, partial: Path) -> Path:
    """Makes ``partial`` whole, and returns it."""
    source = _beside(partial, ".from")  # holds what tells the server's file from later ones of that address
    validator = source.read_text() if source.exists() and partial.exists() else ""
    have = partial.stat().st_size if validator else 0
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if not have or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        source.unlink()  # what is there is no beginning of the file
        return _download(url, partial)
    with response:
        length = response.headers.get("Content-Length")
        if length is None:
            raise ValueError("the server does not say how long the file is")
        kind, packed = response.headers.get_content_type(), response.headers.get("Content-Encoding", "identity")
        if not int(length) > 0 or kind == "text/html" or packed != "identity":
            raise ValueError(f"the server sends no such file, but {length} bytes of {kind}, encoded as {packed}")
        start = 0
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            part = re.fullmatch(rf"bytes {have}-(\d+)/(\d+)", response.headers.get("Content-Range", ""))
            if not part or not int(part[1]) + 1 == int(part[2]) == int(length) + have:
                raise ValueError(f"the server sends another part than from byte {have} on")
            came = _validator(response.headers)  # where it is an ETag, a part has it too: RFC 9110, 15.3.7
            if have and came != validator and (came or validator.startswith('"')):
                source.unlink()  # a part of another file
                return _download(url, partial)
            start = have
        total = int(length) + start
        source.write_text(_validator(response.headers))
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            partial.open("ab" if start else "wb") as file,
            Progress(*columns, console=Screen(stderr=True)) as shown,
        ):
            task = shown.add_task(partial.stem, total=total, completed=start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                shown.advance(task, len(chunk))
            received = file.tell()
    if received != total:
        raise ValueError(f"{received} of {total} bytes came; run again to go on from there")
    return partial


def _validator(headers: Mapping[str, str]) -> str:
    """What If-Range takes: a strong ETag, else the date; RFC 9110, 13.1.5."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")
