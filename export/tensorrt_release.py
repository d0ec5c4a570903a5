"""Which ONNX a release of TensorRT reads.

Sources: docs/operators.md (of 10.15) and docs/Changelog.md of onnx/onnx-tensorrt, TensorRT's release notes.
JetPack 6 brings TensorRT 10.3, JetPack 7.2 10.16, and 11.4 from 7.2.2 on.
"""

import re
from dataclasses import dataclass

from edge_sampler.runtime.errors import UserError


@dataclass(frozen=True)
class Reads:
    """From ``since`` on: the latest opset, and whether it reads what needs a later one.

    Args:
        since: the release, its first two numbers.
        opset: the latest that it reads; a graph of a later one is written anew. None: any that we write.
        group_norm: GroupNormalization of opset 21, with a scale for each channel.
        bf16: convolutions of bfloat16, of opset 22.
    """

    since: tuple[int, int]
    opset: int | None = None
    group_norm: bool = True
    bf16: bool = True


RELEASES = (Reads((10, 0), opset=20, group_norm=False, bf16=False), Reads((10, 9)))
RTX = Reads((1, 0))


def reads(flavour: str, version: str) -> Reads:
    """Of an engine library. Raises UserError for a release older than all that are known."""
    if flavour == "tensorrt-rtx":
        return RTX
    release = tuple(map(int, re.findall(r"\d+", version)[:2]))
    known = [one for one in RELEASES if one.since <= release]
    if not known:
        raise UserError(
            f"TensorRT {version} is older than all that are supported, from {'.'.join(map(str, RELEASES[0].since))} "
            "on: a Jetson has a later one with JetPack 6, a PC by pip install tensorrt"
        )
    return known[-1]
