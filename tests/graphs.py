"""Denoisers of a few nodes, as ONNX graphs."""

import json
from pathlib import Path

import onnx
import onnx.parser

X, LEVEL, MADE = "float[batch, 1, 4, 4] x", "float[] sigma", "float[batch, 1, 4, 4] denoised"
FITS = (
    "square = Mul(sigma, sigma) one = Constant<value = float {1}>() spread = Add(one, square) denoised = Div(x, spread)"
)
LEVELS = {"sigma_min": 0.01, "sigma_max": 20.0}


def graph(inputs: str = f"{X}, {LEVEL}", outputs: str = MADE, nodes: str = FITS) -> onnx.ModelProto:
    """The denoiser of unit data, x / (1 + σ²), or another."""
    head = '<ir_version: 10, opset_import: ["" : 21]>'
    model = onnx.parser.parse_model(f"{head} toy ({inputs}) => ({outputs}) {{ {nodes} }}")
    for value in model.graph.input:
        value.type.tensor_type.shape.SetInParent()  # the parser takes [] for no shape, and no brackets for []
    return model


def put(folder: Path, model: onnx.ModelProto, facts: object = LEVELS) -> str:
    """FILE.onnx, and FILE.json beside it."""
    path = folder / "toy.onnx"
    onnx.save(model, path)
    path.with_suffix(".json").write_text(json.dumps(facts))
    return str(path)
