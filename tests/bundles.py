"""Bundles that tests share, for machines without PyTorch: python -m tests.bundles FOLDER."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_sampler.runtime.manifest import MANIFEST, facts_of, write_manifest
from edge_sampler.runtime.verified import describe_files

TINY = str(Path(__file__).parent / "data" / "official-format-tiny.pkl")
BUNDLES = {
    "digits": (
        "--model", "edm-digits", "--nfe", "4", "--solver", "iia-ipndm",
        "--fit-target", "global", "--fit-batch", "16", "--heldout", "8", "--reference-steps", "64", "--check", "4",
    ),
    "tiny": ("--model", TINY, "--nfe", "3", "--solver", "ddim", "--check", "0", "--output", "uint8"),
    "hearts": ("--model", "flow-emoji", "--nfe", "2", "--solver", "ddim", "--check", "0", "--guidance", "3"),
}  # fmt: skip


def remake_manifest(folder: Path, change: Callable[[dict[str, Any]], object] = lambda facts: None) -> None:
    """What a bundle's manifest says is changed, and all of its hashes are made right again."""
    facts = facts_of(json.loads((folder / MANIFEST).read_text()))
    change(facts)
    write_manifest(folder / MANIFEST, facts, describe_files(folder))


def facts(inputs: Mapping[str, Any], output: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a bundle that no exporter made."""
    model = {
        "name": "arms", "fingerprint": "", "licence": "none", "weights_sha256": "", "random_weights": False,
        "sigma_min": 0.1, "sigma_max": 1.0, "built_in": {}, "guidance": 1.0, "branches": 1, "schedule": "edm",
        "inputs": inputs, "raw": {}, "made": [], "output": output,
    }  # fmt: skip
    told = {"model": model, "inputs": inputs, "output": output, "dtype": "float32", "stages": [], "solver": "ddim"}
    return {**told, "nfe": 1, "plan_sha256": "0" * 64, "tools": {}}


if __name__ == "__main__":
    from edge_sampler.export.command import main

    folder = Path(sys.argv[1])
    for name, arguments in BUNDLES.items():
        sys.argv = ["export", *arguments, "--out", str(folder / name)]
        main()
