"""TensorRT proper, which builds on the GPU it is for: what the builder is asked, by a library that writes it down."""

import ctypes
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import onnx
import pytest

from edge_sampler.export.engine_command import main
from edge_sampler.runtime.backends.tensorrt_module import logger
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import Batch
from edge_sampler.runtime.errors import UserError
from tests.conftest import run_main

PLAN = b"a plan"


def recording(version: str, creation_flags: dict[str, int]) -> Any:
    """A TensorRT of that version: its builder records, and gives one plan for every network."""
    tensor = SimpleNamespace(name="noise", shape=[-1, 1, 8, 8])
    network = MagicMock(num_layers=0, num_inputs=1)
    network.get_input.return_value = tensor
    builder = MagicMock()
    builder.create_network.return_value = network
    builder.build_serialized_network.return_value = PLAN
    builder.create_builder_config.return_value = MagicMock(
        spec=["max_aux_streams", "clear_flag", "add_optimization_profile"]  # a call to anything else fails
    )
    parser = MagicMock()
    parser.parse_from_file.return_value = True
    return SimpleNamespace(
        __version__=version,
        __spec__=ModuleSpec("tensorrt", None),  # PyTorch looks at it
        NetworkDefinitionCreationFlag=SimpleNamespace(**creation_flags),
        BuilderFlag=SimpleNamespace(TF32="TF32"),
        LayerType=SimpleNamespace(NORMALIZATION="NORMALIZATION"),
        ILogger=type("ILogger", (), {"Severity": SimpleNamespace(VERBOSE="VERBOSE")}),
        Dims=list,
        Builder=MagicMock(return_value=builder),
        OnnxParser=MagicMock(return_value=parser),
    )


@pytest.fixture(
    params=[
        ("10.3.0", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}),
        ("11.4.1", {"STRONGLY_TYPED": 1}),
        ("12.0.0", {}),
    ],
    ids=lambda param: param[0],
)
def library(request: pytest.FixtureRequest, fake_cuda: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = recording(*request.param)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    logger.cache_clear()
    yield module
    logger.cache_clear()


def test_every_version_is_asked_for_a_strongly_typed_network(copy: Path, library: Any) -> None:
    run_main(main, str(copy), "--engine", "tensorrt", "--precision", "fp16", "--batch", "1:4:16")
    builder = library.Builder()
    named = hasattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    builder.create_network.assert_called_once_with(2 if named else 0)
    config = builder.create_builder_config()
    config.clear_flag.assert_called_once_with("TF32")  # and no flag set: types are in the graph
    assert config.max_aux_streams == 0
    profile = builder.create_optimization_profile()
    profile.set_shape.assert_called_once_with("noise", [1, 1, 8, 8], [4, 1, 8, 8], [16, 1, 8, 8])
    config.add_optimization_profile.assert_called_once_with(profile)


def test_every_version_is_given_what_it_reads(copy: Path, library: Any) -> None:
    """Group norms of edm-digits have several groups: raised where the release has the operator for it."""
    graphs = []

    def parse(path: str) -> bool:
        graphs.append(onnx.load(path))
        return True

    library.OnnxParser().parse_from_file.side_effect = parse
    run_main(main, str(copy), "--engine", "tensorrt")
    (graph,) = graphs
    old = library.__version__ == "10.3.0"
    assert graph.opset_import[0].version == (20 if old else 21)
    assert ("GroupNormalization" in {node.op_type for node in graph.graph.node}) != old


def test_bf16_is_refused_where_it_is_not_read(copy: Path, library: Any) -> None:
    library.__version__, before = "10.8.0", sorted(copy.rglob("*"))
    with pytest.raises(UserError, match=r"TensorRT 10\.8\.0 reads no bf16 graphs: take --precision fp16"):
        run_main(main, str(copy), "--engine", "tensorrt", "--precision", "bf16")
    assert sorted(copy.rglob("*")) == before


def test_the_engine_is_for_this_gpu(copy: Path, library: Any) -> None:
    run_main(main, str(copy), "--engine", "tensorrt", "--target", "sm86")
    bundle = Bundle.open(copy)
    (engine,) = bundle.engines
    assert (engine.targets, engine.version, engine.batch) == (("sm86",), library.__version__, Batch(1, 1, 1))
    assert bundle.read(engine.file) == PLAN
    assert json.loads((copy / "manifest.json").read_text())["engines"] == [json.loads(json.dumps(engine.record()))]


def test_another_gpu_is_refused(copy: Path, library: Any) -> None:
    with pytest.raises(UserError, match="target sm89 is not this machine's GPU, sm86"):
        run_main(main, str(copy), "--engine", "tensorrt", "--target", "sm89")


def test_what_the_parser_says_is_passed_on(copy: Path, library: Any) -> None:
    parser = library.OnnxParser()
    parser.parse_from_file.return_value = False
    parser.num_errors = 1
    parser.get_error.return_value.desc.return_value = "no importer for Foo"
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="tensorrt cannot read the graph: no importer for Foo"):
        run_main(main, str(copy), "--engine", "tensorrt")
    assert sorted(copy.rglob("*")) == before


def test_a_failed_build_adds_nothing(copy: Path, library: Any) -> None:
    library.Builder().build_serialized_network.return_value = None
    before = sorted(copy.rglob("*"))
    with pytest.raises(UserError, match="tensorrt could not build engines/"):
        run_main(main, str(copy), "--engine", "tensorrt")
    assert sorted(copy.rglob("*")) == before
