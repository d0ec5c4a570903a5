"""What an ONNX file may hold: types that ONNX knows, and weights wherever they stand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_sampler import models
from edge_sampler.runtime.errors import UserError
from tests.graphs import graph, put


def constant(model: onnx.ModelProto) -> onnx.TensorProto:
    """What the graph adds to σ², the value of a node."""
    (node,) = (node for node in model.graph.node if node.op_type == "Constant")
    return node.attribute[0].t


def retyped(model: onnx.ModelProto) -> None:
    constant(model).data_type = 33


def retyped_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 33


def retyped_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = 99


def retyped_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(onnx.TensorProto(name="w", dims=[0], data_type=0))


def sparse(model: onnx.ModelProto) -> None:
    values, places = (onnx.numpy_helper.from_array(np.ones(1, dtype), "w") for dtype in (np.float32, np.int64))
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))


def sparse_constant(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute[0].CopyFrom(
        onnx.helper.make_attribute("sparse_value", onnx.SparseTensorProto(dims=[4]))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (retyped, "the weights '' are of type 33, which ONNX does not know"),
        (retyped_initializer, "the weights 'w' are of type 0, which ONNX does not know"),
        (retyped_input, "x is of type 33, which ONNX does not know; allowed: float32, int64, bool"),
        (retyped_output, "denoised is of type 99, which ONNX does not know; allowed"),
        (sparse, "has sparse weights .'w'., which are not supported: write them as dense ones"),
        (sparse_constant, "has sparse weights .'sparse_value'., which are not supported"),
    ],
)
def test_types_and_weights_that_cannot_be_read_are_refused(
    change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    model = graph()
    change(model)
    with pytest.raises(UserError, match=f"toy.onnx.* {message}"):
        models.load(put(tmp_path, model))


def test_a_fingerprint_is_also_of_what_nodes_have_in_files(tmp_path: Path) -> None:
    model = graph()
    constant(model).CopyFrom(onnx.numpy_helper.from_array(np.array([1], np.float32)))
    path, found = put(tmp_path, model), []
    onnx.save(model, path, save_as_external_data=True, location="toy.data", size_threshold=0, convert_attribute=True)
    for number in (1.0, 2.0):
        (tmp_path / "toy.data").write_bytes(np.array([number], np.float32).tobytes())
        found.append(models.load(path).spec.fingerprint)
    assert found[0] != found[1]
    (tmp_path / "toy.data").unlink()
    with pytest.raises(UserError, match=r"has weights in 'toy.data', which is no file beside it"):
        models.load(path)
