"""Downloads weights into a cache folder: resumable, atomic, with progress."""

import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path

from filelock import FileLock
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError

TIMEOUT = 30  # seconds without a byte
CHUNK = 1 << 20


def cached(url: str) -> Path:
    """Where the file of ``url`` is kept, once it is there: in folders named as the address is."""
    return cache_folder() / url.split("://")[1]


class NotFoundError(UserError):
    """The server says that there is no such file."""


def fetch(url: str, target: Path | None = None) -> Path:
    """The file of ``url``, kept at ``target`` (by default in the cache), downloaded first if it is not there.

    An interrupted download leaves ``NAME.part``, from which the next call goes on. Of several processes that want the
    file one downloads it and the others wait (``NAME.lock``). Raises UserError naming the URL and the place when the
    file can be had from neither.
    """
    target = target or cached(url)
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(target.name + ".lock")):
            if not target.is_file():
                _download(url, target.with_name(target.name + ".part")).replace(target)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        kind = NotFoundError if getattr(error, "code", None) == HTTPStatus.NOT_FOUND else UserError
        raise kind(f"cannot download {url} ({reason}); put the file at {target}, or pass --weights FILE") from error
    return target


def _download(url: str, partial: Path) -> Path:
    """Makes ``partial`` whole, and returns it."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if not have or error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers["Content-Range"] != f"bytes */{have}":  # what is there is no beginning of the file
            partial.unlink()
            return _download(url, partial)
        return partial
    with response:
        resumed = response.status == 206
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = int(length) + start if length else None
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        with (
            partial.open("ab" if resumed else "wb") as file,
            Progress(*columns, console=Console(stderr=True)) as shown,
        ):
            task = shown.add_task(partial.stem, total=total, completed=start)
            while chunk := response.read(CHUNK):
                file.write(chunk)
                shown.advance(task, len(chunk))
            received = file.tell()
    if total and received != total:
        raise ValueError(f"{received} of {total} bytes came; run again to go on from there")
    return partial
