"""A model repository of Triton, of a bundle: its configuration, as Triton's protocol buffers read it, and its noise."""

import importlib
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.export.triton import main
from edge_sampler.runtime import load
from edge_sampler.runtime.backends.onnxrt import Session
from edge_sampler.runtime.bundle import Bundle
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.manifest import facts_of, write_manifest
from edge_sampler.runtime.noise import unit_noise
from edge_sampler.runtime.sampler import feed_of
from edge_sampler.runtime.verified import describe_files
from tests.conftest import run_main

TYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_BOOL": np.bool_, "TYPE_UINT8": np.uint8}


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def protocol() -> Any:
    """model_config.proto, compiled, from tritonclient; its gRPC, beside which it lies, is not needed."""
    client = pytest.importorskip("tritonclient")
    return module(Path(client.__path__[0]) / "grpc" / "model_config_pb2.py")


def config(protocol: Any, folder: Path) -> Any:
    text_format = importlib.import_module("google.protobuf.text_format")
    read = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), protocol.ModelConfig())
    assert read.name == folder.name  # or Triton refuses it
    return read


def repository(bundle: Path, out: Path, *arguments: str) -> dict[str, Path]:
    run_main(main, str(bundle), "--out", str(out), "--name", "m", *arguments)
    assert {path.name for path in out.iterdir()} == {"m", "m-noise", "m-seeds"}
    return {end: out / f"m{end}" for end in ("", "-noise", "-seeds")}


def answer(model: Path, sizes: str, temperature: str, **inputs: np.ndarray) -> Any:
    """What the Python backend's file answers to one request: an array, or an error's words."""

    utils: Any = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(as_numpy=lambda: request[name]),
        Tensor=lambda name, array: (name, array),
        TritonError=str,
        InferenceResponse=lambda output_tensors, error=None: error or dict(output_tensors)["noise"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", utils)
        made = module(model / "1" / "model.py").TritonPythonModel()
    parameters = {"shape": {"string_value": sizes}, "temperature": {"string_value": temperature}}
    made.initialize({"model_config": json.dumps({"parameters": parameters})})
    (found,) = made.execute([inputs])
    return found


def fits(tensor: Any, array: np.ndarray) -> bool:
    """Whether Triton would take it: [n, *dims]."""
    dims = array.shape[1:]
    return len(dims) == len(tensor.dims) and all(
        want in (-1, size) for want, size in zip(tensor.dims, dims, strict=True)
    )


def test_what_the_models_are(protocol: Any, conditional: Path, tmp_path: Path) -> None:
    """tiny: classes, and uint8 pictures."""
    folders = repository(conditional, tmp_path / "models", "--batch", "8")
    base, noise, seeds = (config(protocol, folder) for folder in folders.values())
    assert (base.backend, noise.backend, seeds.platform) == ("onnxruntime", "python", "ensemble")
    assert base.max_batch_size == noise.max_batch_size == seeds.max_batch_size == 8
    assert (folders[""] / "1" / base.default_model_filename).read_bytes() == (conditional / "sampler.onnx").read_bytes()
    session = Session(folders[""] / "1" / "model.onnx")
    bundle = Bundle.open(conditional)
    feed = feed_of(bundle, [3, 4], {"class_labels": [1, 2]})
    sent = {name: array.reshape(2, -1) if array.ndim == 1 else array for name, array in feed.items()}
    for tensor in base.input:
        assert fits(tensor, sent[tensor.name])
        assert TYPES[protocol.DataType.Name(tensor.data_type)] == sent[tensor.name].dtype
        # Triton's reshape of what is sent is what the graph takes
        shape = list(tensor.reshape.shape) if tensor.HasField("reshape") else list(tensor.dims)
        assert [2, *shape] == list(feed[tensor.name].shape)
    made = session.run(feed)
    assert [output.name for output in base.output] == list(made)
    assert fits(base.output[0], made["images"])
    assert TYPES[protocol.DataType.Name(base.output[0].data_type)] == made["images"].dtype
    assert [list(group.gpus) for group in base.instance_group] == [[]]  # of each GPU
    assert list(base.dynamic_batching.preferred_batch_size) == [8]
    for warm in base.model_warmup:
        for name, value in warm.inputs.items():
            content = (folders[""] / "warmup" / value.input_data_file).read_bytes()
            array: np.ndarray = np.frombuffer(content, TYPES[protocol.DataType.Name(value.data_type)]).reshape(
                1, *value.dims
            )
            assert fits(next(tensor for tensor in base.input if tensor.name == name), array)
        np.testing.assert_array_equal(
            np.frombuffer((folders[""] / "warmup" / "noise").read_bytes(), np.float32),
            unit_noise([0], (3, 16, 16)).ravel(),
        )
    assert [warm.batch_size for warm in base.model_warmup] == [1, 8]


def test_the_ensemble_hands_each_input_to_its_model(protocol: Any, conditional: Path, tmp_path: Path) -> None:
    base, noise, seeds = (config(protocol, folder) for folder in repository(conditional, tmp_path / "models").values())
    models, known = {"m": base, "m-noise": noise}, {tensor.name: tensor for tensor in seeds.input}
    for step in seeds.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        for tensor in model.input:
            there = known[step.input_map[tensor.name]]
            assert (list(there.dims), there.data_type) == (list(tensor.dims), tensor.data_type)
        known |= {step.output_map[tensor.name]: tensor for tensor in model.output}
    for output in seeds.output:
        assert (list(known[output.name].dims), known[output.name].data_type) == (list(output.dims), output.data_type)


def test_its_noise_is_ours(copy: Path, tmp_path: Path, protocol: Any) -> None:
    changed(copy, {"temperature": 0.5})
    folder = repository(copy, tmp_path / "models")["-noise"]
    told = config(protocol, folder).parameters
    told = [told[name].string_value for name in ("shape", "temperature")]
    seeds = np.array([[0], [7], [2**63 - 1]])
    np.testing.assert_array_equal(answer(folder, *told, seeds=seeds), 0.5 * unit_noise(seeds[:, 0].tolist(), (1, 8, 8)))
    assert "seed -1 is out of range" in answer(folder, *told, seeds=np.array([[-1]]))
    assert "edge_sampler" not in (folder / "1" / "model.py").read_text()
    found = answer(folder, '[["text", 0, 1], 2]', "1.0", seeds=seeds, text=np.zeros((3, 5, 4)))
    np.testing.assert_array_equal(found, unit_noise(seeds[:, 0].tolist(), (5, 2)))
    found = answer(folder, '[["text", 1, 4], 2]', "1.0", seeds=seeds, text=np.zeros((3, 5, 12)))
    np.testing.assert_array_equal(found, unit_noise(seeds[:, 0].tolist(), (3, 2)))


def test_axes_are_sized_by_conditions(protocol: Any, copy: Path, tmp_path: Path) -> None:
    inputs = {
        "shape": ["length", "width"],
        "conditions": {
            "mask": {"shape": ["length"], "dtype": "bool", "null": None, "choices": 0, "description": ""},
            "speaker": {"shape": [], "dtype": "float32", "null": None, "choices": 0, "description": ""},
        },
        "axes": {"length": [2, 4, 8], "width": [3, 5, 7]},
    }
    reference = {"input_mask": np.ones((4, 4), bool), "input_speaker": np.ones(4, np.float32)}
    reference["made"] = np.zeros((4, 4, 5), np.float32)
    reference["denoised"] = np.zeros((Bundle.open(copy).plan.nfe, 4, 4, 5), np.float32)
    changed(copy, {"inputs": inputs, "output": {"name": "mel", "shape": ["length", "width"], "units": ""}}, reference)
    base, noise, seeds = (config(protocol, folder) for folder in repository(copy, tmp_path / "models").values())
    assert {tensor.name: list(tensor.dims) for tensor in base.input} == {
        "noise": [-1, -1],
        "mask": [-1],
        "speaker": [1],
    }
    assert [list(tensor.dims) for tensor in base.output] == [[-1, -1]]
    assert [tensor.name for tensor in noise.input] == ["seeds", "mask"]
    assert list(noise.output[0].dims) == [-1, 5]
    assert json.loads(noise.parameters["shape"].string_value) == [["mask", 0, 1], 5]  # no condition tells the width
    assert [tensor.name for tensor in seeds.input] == ["seeds", "mask", "speaker"]


def changed(folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """A bundle with other facts, and other arrays among its reference."""
    manifest = json.loads((folder / "manifest.json").read_text())
    if arrays:
        with np.load(folder / "reference.npz") as stored:
            kept = {name: stored[name] for name in stored.files}
        np.savez(folder / "reference.npz", **kept | dict(arrays))
    told = {**facts_of(manifest), **facts}
    told["model"] |= {"inputs": told["inputs"]}
    write_manifest(folder / "manifest.json", told, describe_files(folder))


def test_engines_are_chosen_by_gpu(
    protocol: Any, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "engines").mkdir()
    engines = [
        Engine(f"engines/{name}.engine", flavour, "10.3.0", targets, precision, Batch(1, opt, most))
        for name, flavour, targets, precision, opt, most in (
            ("a-fp32", "tensorrt", ("sm86",), "fp32", 4, 16),
            ("a-fp16", "tensorrt", ("sm86",), "fp16", 2, 8),
            ("b", "tensorrt", ("sm120",), "fp32", 4, 32),
            ("later", "tensorrt", ("sm120",), "fp32", 1, 2),
            ("rtx", "tensorrt-rtx", ("sm89",), "fp16", 1, 1),
        )
    ]
    for engine in engines:
        (copy / engine.file).write_text(engine.file)
    looped = Engine("engines/loop.engine", "tensorrt", "10.3.0", ("sm86",), "fp16", Batch(1, 1, 2), loop=True)
    (copy / looped.file).write_text("slower")
    changed(copy, {"engines": [engine.record() for engine in (looped, *engines)]})
    folders = repository(copy, tmp_path / "models")
    base = config(protocol, folders[""])
    assert (base.backend, base.max_batch_size) == ("tensorrt", 8)
    assert dict(base.cc_model_filenames) == {"8.6": "a-fp16.plan", "12.0": "b.plan"}
    assert {path.name: path.read_text() for path in (folders[""] / "1").iterdir()} == {
        "a-fp16.plan": "engines/a-fp16.engine",
        "b.plan": "engines/b.engine",
    }
    assert list(base.dynamic_batching.preferred_batch_size) == [2, 8]
    assert [protocol.ModelInstanceGroup.Kind.Name(group.kind) for group in base.instance_group] == ["KIND_GPU"]
    assert "TensorRT 10.3.0, for GPUs 8.6, 12.0" in capsys.readouterr().out
    fp32 = config(protocol, repository(copy, tmp_path / "others", "--precision", "fp32")[""])
    assert dict(fp32.cc_model_filenames) == {"8.6": "a-fp32.plan", "12.0": "b.plan"}
    with pytest.raises(UserError, match="--batch is 9, and the engines take 8 at most"):
        run_main(main, str(copy), "--out", str(tmp_path / "x"), "--batch", "9")
    fixed = Engine("engines/a-fp32.engine", "tensorrt", "10.3.0", ("sm86",), "fp32", Batch(4, 4, 4))
    changed(copy, {"engines": [fixed.record()]})
    with pytest.raises(UserError, match="takes 4 images at the least"):
        run_main(main, str(copy), "--out", str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


def test_weights_beside_the_graph_come_too(copy: Path, tmp_path: Path) -> None:
    import onnx

    graph = onnx.load(copy / "sampler.onnx")
    onnx.save_model(
        graph, copy / "sampler.onnx", save_as_external_data=True, location="weights.data", size_threshold=4096
    )
    changed(copy, {})
    folder = repository(copy, tmp_path / "models")[""]
    assert (folder / "1" / "weights.data").is_file()
    with load(copy) as sampler:
        wanted = sampler.sample([1, 2])
    made = Session(folder / "1" / "model.onnx").run({"noise": unit_noise([1, 2], (1, 8, 8))})["images"]
    np.testing.assert_allclose(made, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["triton", "models"])
def test_a_folder_of_pythons_is_refused(name: str, copy: Path, tmp_path: Path) -> None:
    """One called triton hides PyTorch's package from whatever starts beside it; one with modules is a package."""
    if name == "models":
        (tmp_path / name).mkdir()
        (tmp_path / name / "zoo.py").touch()
    with pytest.raises(UserError, match=f"{name} would hide or hold a package of Python's; choose another folder"):
        run_main(main, str(copy), "--out", str(tmp_path / name))
    assert not list(tmp_path.rglob("config.pbtxt"))


def test_it_is_whole_or_not_there(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "models"
    (out / "other").mkdir(parents=True)
    run_main(main, str(copy), "--out", str(out))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in out.iterdir()} == {"copy", "copy-noise", "copy-seeds", "other"}
    shutil.rmtree(out / "copy-seeds")
    with pytest.raises(UserError, match="copy-noise exists"):  # a part of it
        run_main(main, str(copy), "--out", str(out))
    assert not (out / "copy-seeds").exists()
    run_main(main, str(copy), "--out", str(out), "--force")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    for arguments, message in (
        ((), "exists"),
        (("--name", "other", "--force"), "other is a folder but no model of Triton"),
        *((("--name", name), "must be the name of a folder") for name in ("a/b", "..", ".", "", "a\nb", "\udcff")),
        (("--name", "x", "--batch", "0"), "--batch is 0"),
        (("--name", "x", "--batch", "1048577"), "--batch is 1048577; it must be at least 1 and at most 1,048,576"),
        (("--name", "x", "--precision", "fp16"), "holds no sampler-fp16.onnx"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            run_main(main, str(copy), "--out", str(out), *arguments)
    content = bytearray((copy / "sampler.onnx").read_bytes())
    content[-1] ^= 1
    (copy / "sampler.onnx").write_bytes(content)
    with pytest.raises(UserError, match="not the file the manifest describes"):
        run_main(main, str(copy), "--out", str(out), "--force")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
