"""Serves bundles over HTTP: KServe's protocol, version 2, and pictures.

python -m runtime serve BUNDLE                            # on http://127.0.0.1:8000, which has a page to try it
python -m runtime serve BUNDLE OTHER --host 0.0.0.0       # several, each by its folder's name
curl 'http://127.0.0.1:8000/v2/models/BUNDLE/image?seed=7' --output 7.png

SIGTERM and Ctrl-C let accepted requests finish; new ones are refused. The environment variable EDGE_SAMPLER_API_KEY is
a key that clients then have to send.
"""

import argparse
import math
import os
import socket
import sys
from pathlib import Path

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key
from edge_sampler.runtime.engine_record import MOST_BATCH
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.install import install_command

KEY = "EDGE_SAMPLER_API_KEY"
LOCAL = ("127.0.0.1", "::1", "localhost")
MOST_WAITING, MOST_MEGABYTES = 2**20, 2**20  # images in the queue; of a request's body


def main() -> int:
    parser = Parser(
        prog="python -m runtime serve",
        description=__doc__,
        common=("--host", "--port", "--backend", "--precision", "--batch", "--queue"),
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    add_verify_key(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine's)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000)")
    parser.add_argument("--backend", default="auto", help="auto (default), or a backend of `python -m runtime sample`")
    parser.add_argument("--precision", help="the network's, such as fp16 (default: an engine's fastest; fp32)")
    parser.add_argument("--batch", type=int, help="most images in one run (default: an engine's largest, or up to 16)")
    parser.add_argument("--wait", type=float, default=5, help="milliseconds that a run waits for images (default: 5)")
    parser.add_argument("--queue", type=int, default=256, help="most waiting images; beyond it 429 (default: 256)")
    parser.add_argument("--max-body", type=int, default=16, help="largest request, in MB (default: 16)")
    arguments = parser.parse_args()
    try:
        from edge_sampler.runtime.serve.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed, and serving needs it: {install_command('serve')}") from error
    _check(arguments)
    bundles = _named(arguments.bundles, arguments.verify_key)
    key = _key()
    with _listening(arguments.host, arguments.port) as listener:
        if key is None and arguments.host not in LOCAL:
            print(
                f"note: whoever reaches {arguments.host or 'this machine'} may ask; {KEY} sets a key", file=sys.stderr
            )
        for name, bundle in bundles.items():
            if bundle.random_weights:
                print(f"note: {name} has random weights; what it makes means nothing", file=sys.stderr)
        serve(bundles, listener, key, arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 0 <= arguments.port <= 65535:
        raise UserError(f"--port is {arguments.port}; it must be 1 to 65535, or 0 for any that is free")
    for option, most in (("batch", MOST_BATCH), ("queue", MOST_WAITING), ("max_body", MOST_MEGABYTES)):
        value = getattr(arguments, option)
        if value is not None and not 1 <= value <= most:
            raise UserError(f"--{option.replace('_', '-')} is {value}; it must be at least 1, at most {most:,}")
    if not (math.isfinite(arguments.wait) and arguments.wait >= 0):
        raise UserError(f"--wait is {arguments.wait}; it must be 0 or more milliseconds")


def _named(folders: list[Path], verify_key: Path | None = None) -> dict[str, Bundle]:
    """Bundles by their folders' names. Raises UserError for two of one name, and as ``Bundle.open``."""
    bundles: dict[str, Bundle] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in bundles:
            raise UserError(f"{bundles[name].folder} and {folder} are both called {name}: rename one of the folders")
        bundles[name] = Bundle.open(folder, verify_key)
    return bundles


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise UserError(f"{KEY} must be printable ASCII without spaces around it, and not empty: unset it for no key")
    return key


def _listening(host: str, port: int) -> socket.socket:
    """Raises UserError for an address that is not this machine's, and a port that is taken or not allowed."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, UnicodeError, TypeError) as error:  # the last of a name that is too long and not ASCII
        told = str(error.strerror if isinstance(error, OSError) else error).partition(" (while ")[0]  # Python's own end
        raise UserError(
            f"cannot listen on port {port} of {host}: {told}; choose another with --port or --host"
        ) from error
