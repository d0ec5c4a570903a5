"""Runs that a GPU captures: each combination of shapes has buffers of its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_sampler.runtime.backends import onnxrt
from edge_sampler.runtime.backends.onnxrt import CapturedRuns
from edge_sampler.runtime.bundle import Bundle
from tests.runtime.test_onnxrt_parts import Options, value


def test_a_captured_run_keeps_its_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each combination of shapes has buffers, and a number, until there are as many as are kept."""
    numbers, placed = list[str](), list[Any]()

    class OrtValue:
        def __init__(self, shape: Any, dtype: Any) -> None:
            self.array = np.zeros(shape, dtype)

        @staticmethod
        def ortvalue_from_shape_and_type(shape: Any, dtype: Any, device: str, number: int) -> "OrtValue":
            placed.append((tuple(shape), np.dtype(dtype).name, device, number))
            return OrtValue(shape, dtype)

        def update_inplace(self, array: np.ndarray) -> None:
            assert array.flags.c_contiguous
            self.array[:] = array

        def numpy(self) -> np.ndarray:
            return self.array

    class Binding:
        def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
            self.taken = value

        def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
            self.made = value

    def run(binding: Binding, options: Options) -> None:
        numbers.append(options.entries["gpu_graph_id"])
        binding.made.array[:] = 2 * binding.taken.array.T.ravel()

    session = SimpleNamespace(
        get_inputs=lambda: [value("x", shape=("n", 2))],
        get_outputs=lambda: [value("y", "tensor(uint8)", ("2*n",))],
        io_binding=Binding,
        run_with_iobinding=run,
    )
    monkeypatch.setattr(onnxrt, "library", lambda: SimpleNamespace(OrtValue=OrtValue, RunOptions=Options))
    captured, made = CapturedRuns(session, most=2), list[np.ndarray]()
    for count in (3, 1, 3, 4, 1, 4):
        taken = np.asfortranarray(np.arange(2 * count, dtype=np.float32).reshape(count, 2))
        made.append(captured.run({"x": taken})["y"])
        assert made[-1].tolist() == (2 * taken.T).ravel().tolist()
    assert numbers == ["1", "2", "1", "-1", "2", "-1"]
    assert placed[:2] == [((3, 2), "float32", "cuda", 0), ((6,), "uint8", "cuda", 0)]
    assert made[0] is not made[2]


def test_captured_runs_keep_their_buffers_and_mix_no_shapes(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, which captures nothing: each shape has buffers of its own, and what was returned stays as it was.

    Beyond so many shapes none is kept, and none is captured.
    """
    graph = Bundle.open(made).graph("sampler.onnx")
    noises = [
        np.random.default_rng(seed).normal(size=(n, 1, 8, 8)).astype(np.float32)
        for seed, n in enumerate((2, 3, 2, 4, 1, 3))
    ]
    with onnxrt.Session(graph) as session:
        captured, numbers = onnxrt.CapturedRuns(session._session, "cpu", most=2), list[str]()
        run = session._session.run_with_iobinding

        def spied(binding: Any, options: Any) -> None:
            numbers.append(options.get_run_config_entry("gpu_graph_id"))
            run(binding, options)

        monkeypatch.setattr(session._session, "run_with_iobinding", spied)
        found = [captured.run({"noise": noise})["images"] for noise in noises]
        for noise, images in zip(noises, found, strict=True):
            np.testing.assert_array_equal(images, session.run({"noise": noise})["images"])
        assert numbers == ["1", "2", "1", "-1", "-1", "2"]
        assert len(captured._bound) == 2
