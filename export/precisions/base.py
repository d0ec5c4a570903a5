"""What a lower precision is."""

from dataclasses import dataclass

import onnx_ir as ir

STATISTICS = ("Softmax", "InstanceNormalization", "ReduceL2", "Celu")  # two have no stash_type, and one no other type


@dataclass(frozen=True)
class Precision:
    """A type for the network's weights and activations. A file in export/precisions/ with a ``PRECISION`` adds one.

    Args:
        name: on command lines, and in the names of files.
        dtype: the type.
        largest: its largest finite number.
        float32_inside: operators that stay float32 inside the network.
        opset: the first whose operators take the type.
        advice: what to do where a weight is larger.
        batch_norm: whether ONNX Runtime has a BatchNormalization of the type on CUDA.

    Examples:
        >>> from edge_sampler.export.precisions import PRECISIONS
        >>> PRECISIONS["fp16"].largest, PRECISIONS["bf16"].opset
        (65504.0, 22)
    """

    name: str
    dtype: ir.DataType
    largest: float
    float32_inside: tuple[str, ...] = STATISTICS
    opset: int = 0
    advice: str = "use fp32"
    batch_norm: bool = True


@dataclass(frozen=True)
class Quantised:
    """Eight bits for the operands of the network's convolutions and matrix products, each times a scale.

    As arXiv 1712.05877 has it for integers, and arXiv 2209.05433 for floats of eight bits.

    Args:
        name: on command lines, and in the names of files.
        dtype: of the operands.
        largest: its largest finite number, which a scale makes of the largest value.
        rest: the precision of the rest of the network: fp32, or a ``Precision``'s name.
        results: whether results of convolutions are of eight bits too: ONNX Runtime's CPU kernels ask for it.

    Examples:
        >>> from edge_sampler.export.precisions import QUANTISED
        >>> QUANTISED["int8"].largest, QUANTISED["int8+fp16"].rest
        (127.0, 'fp16')
    """

    name: str
    dtype: ir.DataType
    largest: float
    rest: str = "fp32"
    results: bool = False
