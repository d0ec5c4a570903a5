"""Bundles that tests share, for machines without PyTorch: python -m tests.bundles FOLDER."""

import sys
from pathlib import Path

TINY = str(Path(__file__).parent / "data" / "official-format-tiny.pkl")
BUNDLES = {
    "digits": (
        "--model", "edm-digits", "--nfe", "4", "--solver", "iia-ipndm",
        "--fit-target", "global", "--fit-batch", "16", "--heldout", "8", "--check", "4",
    ),
    "tiny": ("--model", TINY, "--nfe", "3", "--solver", "ddim", "--check", "0", "--output", "uint8"),
    "hearts": ("--model", "flow-emoji", "--nfe", "2", "--solver", "ddim", "--check", "0", "--guidance", "2"),
}  # fmt: skip

if __name__ == "__main__":
    from edge_sampler.export.command import main

    folder = Path(sys.argv[1])
    for name, arguments in BUNDLES.items():
        sys.argv = ["export", *arguments, "--out", str(folder / name)]
        main()
