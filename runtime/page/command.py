"""Writes a web page that makes a bundle's images in the browser: static files, and no server behind them.

python -m runtime page BUNDLE --out site/
python -m http.server -d site             # to look at it

ONNX Runtime Web is downloaded once from the npm registry ($npm_config_registry), or taken from a copy:

python -m runtime page BUNDLE --out site/ --onnxruntime-web node_modules/onnxruntime-web
"""

import shlex
from pathlib import Path

from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.command_line import Parser, add_verify_key
from edge_sampler.runtime.page.folder import ONNX_RUNTIME, TOKENIZERS, write_site


def main() -> int:
    parser = Parser(prog="python -m runtime page", description=__doc__)
    parser.add_argument("bundle", type=Path)
    add_verify_key(parser)
    parser.add_argument("--out", type=Path, required=True, help="the folder, which must not be there yet")
    parser.add_argument("--force", action="store_true", help="replace an existing page, with all in its folder")
    for package in (ONNX_RUNTIME, TOKENIZERS):
        parser.add_argument(
            package.option, type=Path, metavar="FOLDER_OR_TARBALL", help=f"a copy of npm's {package.name}"
        )
    arguments = parser.parse_args()
    given = {ONNX_RUNTIME: arguments.onnxruntime_web, TOKENIZERS: arguments.tokenizers}
    write_site(Bundle.open(arguments.bundle, arguments.verify_key), arguments.out, given, arguments.force)
    written = sum(file.stat().st_size for file in arguments.out.rglob("*") if file.is_file())
    print(f"{arguments.out}: {written / 1e6:.1f} MB; look at it with")
    print(f"python -m http.server -d {shlex.quote(str(arguments.out))}")
    return 0
