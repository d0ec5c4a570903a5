"""Whole numbers of -127 to 127."""

import onnx_ir as ir

from edge_sampler.export.precisions.base import Quantised

PRECISION = Quantised("int8", ir.DataType.INT8, 127.0, results=True)
