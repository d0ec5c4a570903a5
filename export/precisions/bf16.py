"""bfloat16: float32's range, eight bits of it."""

import onnx_ir as ir

from edge_sampler.export.precisions.base import STATISTICS, Precision

PRECISION = Precision(
    "bf16",
    ir.DataType.BFLOAT16,
    float.fromhex("0x1.fep127"),  # 3.39e38
    (*STATISTICS, "ConvTranspose", "Mish"),  # TensorRT-RTX 1.7 fails on the last two
    opset=22,  # the first whose convolutions take it
    batch_norm=False,
)
