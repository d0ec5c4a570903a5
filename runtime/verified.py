"""The files of a bundle, held against its manifest."""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import MANIFEST
from edge_sampler.runtime.signature import SIGNATURE

WEIGHTS = "weights.data"
PIECE = 2**20  # bytes of a file that are hashed at a time


def weights_beside(graph: Path) -> tuple[Path, Path]:
    """Where a graph's weights are, if they are not in it: in a file of its own, or in one with those of the others."""
    return graph.with_name(f"{graph.name}.data"), graph.with_name(WEIGHTS)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below ``folder``, the manifest and its signature left out."""
    return {
        path.relative_to(folder).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SIGNATURE)
    }


def missing(folder: Path, name: str) -> str | None:
    """Says that a listed file is not in the folder; None where it is."""
    path = folder / name
    return None if path.is_file() else f"{path} is missing, though the manifest lists it: copy the whole bundle again"


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises UserError where what is done with the file fails."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error


@dataclass(frozen=True)
class Verified:
    """A folder and its manifest. It verifies a file when you ask for it, before anything reads the file.

    Args:
        folder: where it is.
        manifest: the content of manifest.json.

    Examples:
        >>> bundle = edge_sampler.Bundle.open("shrink")
        >>> str(bundle.file("plan.json").name), bundle.read("plan.json")[:1]
        ('plan.json', b'{')
        >>> bundle.graph("sampler.onnx").name
        'sampler.onnx'
        >>> copy = bundle.folder.parent / "copy.json"
        >>> bundle.copy("plan.json", copy)
        >>> copy.read_bytes() == bundle.read("plan.json")
        True
    """

    folder: Path
    manifest: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """One of the bundle's files, verified.

        Args:
            name: as the manifest lists it.

        Returns:
            Its path.

        Raises:
            UserError: when it is missing, not listed or not readable, or its size or SHA-256 differ.
        """
        path, recorded = self._listed(name)
        with readable(path):
            found = file_sha256(path)
        if found != recorded["sha256"]:
            raise _other_file(path)
        return path

    def read(self, name: str) -> bytes:
        """As ``file``, for its content: these very bytes are verified, whatever happens to the file meanwhile.

        Args:
            name: as the manifest lists it.

        Returns:
            The bytes.

        Raises:
            UserError: as ``file``.
        """
        path, recorded = self._listed(name)
        with readable(path):
            content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != recorded["sha256"]:
            raise _other_file(path)
        return content

    def copy(self, name: str, to: Path) -> None:
        """Copies a file. The copy is verified, whatever happens to the file meanwhile.

        Args:
            name: as the manifest lists it.
            to: the new file, in a folder that is there.

        Raises:
            UserError: as ``file``.
        """
        path, recorded = self._listed(name)
        shutil.copyfile(path, to)
        if file_sha256(to) != recorded["sha256"]:
            raise _other_file(path)

    def _listed(self, name: str) -> tuple[Path, Mapping[str, Any]]:
        path, recorded = self.folder / name, self.manifest["files"].get(name)
        if recorded is None:
            raise UserError(f"{self.folder} holds no {name}")
        if told := missing(self.folder, name):
            raise UserError(told)
        if path.stat().st_size != recorded["bytes"]:  # before it is read, whatever its size
            raise _other_file(path)
        return path, recorded

    def graph(self, name: str) -> Path:
        """As ``file``, for an ONNX graph: its external data, where it has some, is verified as well.

        Args:
            name: of the graph, as the manifest lists it.

        Returns:
            Its path.

        Raises:
            UserError: as ``file``.
        """
        beside = [file.name for file in weights_beside(Path(name)) if file.name in self.manifest["files"]]
        for data in beside[:1]:
            self.file(data)
        return self.file(name)


def _other_file(path: Path) -> UserError:
    return UserError(f"{path} is not the file the manifest describes (its SHA-256 differs): copy or export again")
