"""Floats of eight bits, four of them the exponent: E4M3 of arXiv 2209.05433."""

import onnx_ir as ir

from edge_sampler.export.precisions.base import Quantised

PRECISION = Quantised("fp8", ir.DataType.FLOAT8E4M3FN, 448.0)
