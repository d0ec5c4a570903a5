"""IEEE 754's half precision."""

import onnx_ir as ir

from edge_sampler.export.precisions.base import Precision

PRECISION = Precision("fp16", ir.DataType.FLOAT16, 65504.0, advice="use bf16 or fp32")
