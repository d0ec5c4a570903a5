"""Signs a bundle's manifest, as the program minisign does. The manifest has the hash of every other file.

minisign -G -W -p fleet.pub -s fleet.key                  # makes two keys; without -W the secret key has a password
python -m export sign BUNDLE --key fleet.key
python -m runtime sample BUNDLE --verify-key fleet.pub --out grid.png
minisign -V -p fleet.pub -m BUNDLE/manifest.json          # the same check, by minisign
"""

import argparse
import getpass
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_sampler.export.changing import changing
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.json_file import read_bytes
from edge_sampler.runtime.manifest import MANIFEST
from edge_sampler.runtime.output import writable
from edge_sampler.runtime.signature import SIGNATURE, minisign

Signer = Callable[[Path], None]  # signs the manifest in a bundle's folder


def main() -> None:
    parser = Parser(prog="python -m export sign", description=__doc__)
    parser.add_argument("bundle", type=Path, help="a folder that `python -m export` made")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="minisign's secret key")
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    for name in bundle.manifest["files"]:
        bundle.file(name)  # what is damaged is not signed
    sign = signer(arguments.key)
    with changing(bundle):
        sign(bundle.folder)
    print(f"{bundle.folder / SIGNATURE}: signed; any change of the bundle ends that")


def add_sign(parser: argparse._ActionsContainer) -> None:
    sign_help = "sign the bundle with this secret key of minisign (python -m export sign --help)"
    parser.add_argument("--sign", type=Path, metavar="FILE", help=sign_help)


def signer(key: str | Path) -> Signer:
    """Opens minisign's secret key. Asks for its password once.

    Args:
        key: its file, which `minisign -G` makes.

    Returns:
        A function that signs the bundle in a folder, for the argument ``sign`` of ``export_bundle`` and ``add_engine``.

    Raises:
        UserError: for a file that is no secret key, and for a wrong password.

    Examples:
        >>> edge_sampler.signer("fleet.key")
        Traceback (most recent call last):
        edge_sampler.runtime.errors.UserError: cannot read the secret key fleet.key: No such file or directory
    """
    secret = secret_key(Path(key))

    def sign(folder: Path) -> None:
        told = f"timestamp:{int(time.time())}\tfile:{MANIFEST}\thashed"  # as minisign tells
        signature = secret.sign((folder / MANIFEST).read_bytes(), trusted_comment=told)
        with writable(folder / SIGNATURE, force=True, kind="part") as path:
            path.write_bytes(bytes(signature) + b"\n")

    return sign


def secret_key(path: Path) -> Any:
    """Opened, and tried: both halves of it belong together. Raises what ``signer`` raises."""
    try:
        secret = minisign().SecretKey.from_bytes(read_bytes(path))
    except OSError as error:
        raise UserError(f"cannot read the secret key {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is no secret key of minisign, such as minisign.key ({error})") from error
    try:
        if secret.is_encrypted():
            secret.decrypt(password(path))
        secret.get_public_key().verify(b"", secret.sign(b""))
    except (ValueError, MemoryError) as error:
        raise UserError(f"cannot sign with {path}: {error}") from error
    return secret


def password(path: Path) -> str:
    """Of a key: typed, or where nobody types, the first line of standard input. Raises UserError for none."""
    given = getpass.getpass(f"password of {path}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not given:
        raise UserError(f"{path} has a password: type it, or give it on standard input")
    return given
