"""Files of npm packages: downloaded once, and checked against a hash that stands in this code."""

import base64
import hashlib
import http.client
import io
import json
import os
import sys
import tarfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_sampler.runtime.cache_folder import cache_folder
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.output import writable

REGISTRY = "https://registry.npmjs.org"
REGISTRY_VARIABLE = "npm_config_registry"  # npm's own
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Package:
    """One version of a package, and the files of it that are wanted.

    Args:
        name: with its scope.
        option: the command's, which names a copy that is there.
        integrity: the tarball's SHA-512, base64, as npm writes it behind ``sha512-``.
    """

    name: str
    version: str
    option: str
    integrity: str
    files: tuple[str, ...]


def files_of(package: Package, given: Path | None = None) -> tuple[str, Mapping[str, bytes]]:
    """The version, and each wanted file's content: of the registry's package, or of the one that is ``given``.

    ``given`` is a folder or a tarball, of any version, and taken as it is. Raises UserError where the package can be
    had from nowhere, is not what its hash says, or lacks a file.
    """
    path = given or _downloaded(package)
    wanted = ("package.json", *package.files)
    try:
        if path.is_dir():
            found = {name: (path / name).read_bytes() for name in wanted}
        else:
            found = _unpacked(path.read_bytes() if given else _verified(package, path), wanted)
        about = json.loads(found.pop("package.json"))
        name, version = str(about["name"]), str(about["version"])
    except (OSError, EOFError, KeyError, TypeError, ValueError, tarfile.TarError) as error:
        raise UserError(f"{path} is no folder or tarball of the npm package {package.name}: {error}") from error
    if name != package.name:
        raise UserError(f"{path} holds the npm package {name}; {package.option} takes {package.name}")
    if version != package.version:
        print(f"note: {name} {version}; this project is tested with {package.version}", file=sys.stderr)
    return version, found


def _unpacked(tarball: bytes, wanted: tuple[str, ...]) -> dict[str, bytes]:
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        for name in wanted:
            member = archive.extractfile(f"package/{name}")
            if member is None:
                raise KeyError(f"{name} is no file")
            found[name] = member.read()
    return found


def _downloaded(package: Package) -> Path:
    """The tarball in the cache, fetched if it is not there."""
    file = f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    path = cache_folder() / "npm" / package.name / file
    if path.is_file():
        return path
    registry = os.environ.get(REGISTRY_VARIABLE) or REGISTRY
    url = f"{registry.rstrip('/')}/{package.name}/-/{file}"
    print(f"downloading {url}", file=sys.stderr)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); give {package.option} a folder or tarball of "
            f"{package.name}, which `npm pack {package.name}@{package.version}` makes elsewhere"
        ) from error
    _check(package, content, url)
    with writable(path, force=True) as new:
        new.write_bytes(content)
    return path


def _verified(package: Package, path: Path) -> bytes:
    content = path.read_bytes()
    _check(package, content, str(path))
    return content


def _check(package: Package, content: bytes, where: str) -> None:
    found = base64.b64encode(hashlib.sha512(content).digest()).decode()
    if found != package.integrity:
        raise UserError(
            f"{where} is not {package.name} {package.version}: its SHA-512 is {found}, not {package.integrity}; "
            "delete it, or ask another registry"
        )
