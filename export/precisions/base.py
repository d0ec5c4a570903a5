"""What a lower precision is."""

from dataclasses import dataclass

import onnx_ir as ir

STATISTICS = ("Softmax", "InstanceNormalization", "ReduceL2")  # the last two have no stash_type


@dataclass(frozen=True)
class Precision:
    """A type for the network's weights and activations.

    Args:
        name: on command lines, and in the names of files.
        dtype: the type.
        largest: its largest finite number.
        float32_inside: operators that stay float32 inside the network.
        opset: the first whose operators take the type.
        advice: what to do where a weight is larger.
    """

    name: str
    dtype: ir.DataType
    largest: float
    float32_inside: tuple[str, ...] = STATISTICS
    opset: int = 0
    advice: str = "use fp32"
