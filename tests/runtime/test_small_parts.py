"""The runtime's small parts, each by itself: noise, pictures, records of engines and fits, feeds, bytes of a graph."""

import io
import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_sampler.runtime import cuda
from edge_sampler.runtime.backends import base
from edge_sampler.runtime.backends.base import Backend, Spans, check_declared, check_inputs, resident_memory
from edge_sampler.runtime.backends.feeds import Wanted, check_feed, split, wanted_by
from edge_sampler.runtime.condition import Condition
from edge_sampler.runtime.engine_record import Batch, Engine
from edge_sampler.runtime.errors import UserError
from edge_sampler.runtime.fit_report import FitReport
from edge_sampler.runtime.images import as_floats, png, save_grid, to_uint8
from edge_sampler.runtime.inputs import Inputs
from edge_sampler.runtime.noise import CALIBRATION_STREAM, SEEDS, unit_noise
from edge_sampler.runtime.protobuf import declare_outputs, field_head

FLOAT = np.dtype(np.float32)


def test_a_seeds_noise_is_what_it_always_was() -> None:
    """Whoever keeps a seed keeps its sample: the numbers may not change with a release."""
    found = unit_noise([0, 3, SEEDS - 1], (2,))
    expected = [[0.059911035, 0.015559634], [1.8400526, -1.0379294], [0.9518664, -1.0147828]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    assert found.dtype == np.float32
    kept = unit_noise([3], (2,), CALIBRATION_STREAM)
    np.testing.assert_array_equal(kept, np.array([[-2.6272920, 0.8650837]], np.float32))


@pytest.mark.parametrize("seed", [-1, SEEDS])
def test_a_seed_out_of_range_has_no_noise(seed: int) -> None:
    with pytest.raises(UserError, match=f"seed {seed} is out of range; seeds are 0 to 9223372036854775807"):
        unit_noise([0, seed], (1,))


def test_pixels_are_rounded_and_clipped_and_come_back() -> None:
    levels = np.array([-2, -1, -1 + 0.9 / 255, -1 + 1.1 / 255, 0, 1, 1.5], np.float32).reshape(1, 1, 1, 7)
    pixels = to_uint8(levels)
    assert pixels.shape == (1, 1, 7, 1)
    assert pixels.ravel().tolist() == [0, 0, 0, 1, 128, 255, 255]
    every = np.arange(256, dtype=np.uint8).reshape(1, 8, 16, 2)
    assert to_uint8(every) is every
    floats = as_floats(every)
    assert floats.dtype == np.float32
    assert floats.shape == (1, 2, 8, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(floats), every)
    assert as_floats(floats) is floats


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_is_its_pixels(channels: int, mode: str) -> None:
    pixels = np.arange(4 * 5 * channels, dtype=np.uint8).reshape(4, 5, channels)
    with Image.open(io.BytesIO(png(pixels, "seed 3"))) as found:
        assert (found.mode, found.size, found.info["Comment"]) == (mode, (5, 4), "seed 3")
        np.testing.assert_array_equal(np.asarray(found).reshape(pixels.shape), pixels)
    with Image.open(io.BytesIO(png(pixels))) as found:
        assert "Comment" not in found.info


@pytest.mark.parametrize(
    ("count", "height", "columns", "size"),
    [
        (5, 32, None, (3 * 66 + 2, 2 * 66 + 2)),
        (5, 32, 5, (5 * 66 + 2, 66 + 2)),
        (1, 100, None, (104, 104)),
        (1, 24, None, (52, 52)),
    ],
)
def test_a_grid_shows_every_image_in_its_place(
    count: int, height: int, columns: int | None, size: tuple[int, int], tmp_path: Path
) -> None:
    shades = np.linspace(0, 200, count).astype(np.uint8)
    images = np.broadcast_to(shades[:, None, None, None], (count, height, height, 3))
    save_grid(images, tmp_path / "a.png", columns=columns)
    with Image.open(tmp_path / "a.png") as picture:
        found = np.asarray(picture)
        assert picture.size == size
    step, across = found.shape[0] if count == 1 else 66, columns or (3 if count == 5 else 1)
    for place, shade in enumerate(shades):
        top, left = 2 + place // across * step, 2 + place % across * step
        edge = step - (4 if count == 1 else 2)
        assert (found[top : top + edge, left : left + edge] == shade).all()
        assert (found[top - 2 : top, left : left + edge] == 255).all()
        assert (found[top : top + edge, left + edge : left + edge + 2] == 255).all()
    save_grid(images[..., :1], tmp_path / "b.png", "seeds 0 to 4", columns)
    with Image.open(tmp_path / "b.png") as picture:
        words = np.asarray(picture)
    assert words.shape == found.shape
    assert (words[..., 0] > words[..., 1]).any()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 2**14, 2**21 + 5])
def test_a_fields_head_is_protocol_buffers(size: int) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(raw_data=b"\0" * size)  # field 9
    assert field_head(9, size) == tensor.SerializeToString()[: len(field_head(9, size))]
    assert len(tensor.SerializeToString()) == len(field_head(9, size)) + size


def test_a_graph_is_told_more_outputs_by_bytes_behind_it() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> a (float x) => (float y) { y = Abs(x) }')
    names = ["x_1", "a" * 200]
    found = onnx.ModelProto.FromString(model.SerializeToString() + declare_outputs(names))
    assert [one.name for one in found.graph.output] == ["y", *names]
    assert found.graph.node == model.graph.node


def test_a_batch_is_read_as_it_is_told() -> None:
    assert str(Batch.parse("1:4:16")) == "1:4:16"
    assert str(Batch.parse("8")) == str(Batch(8, 8, 8)) == "8"
    assert Batch(1, 1, 2**20).max == 2**20
    assert [batch.static for batch in (Batch(1, 1, 1), Batch(1, 2, 2))] == [True, False]
    for wrong in ((0, 1, 1), (2, 1, 3), (1, 3, 2), (1, 1, 2**20 + 1)):
        with pytest.raises(UserError, match="is out of order; it must be MIN:OPT:MAX with 1 <= MIN"):
            Batch(*wrong)


def engine(**change: Any) -> Engine:
    told = {"file": "engines/a", "flavour": "tensorrt", "version": "10.3", "targets": ("sm86", "sm89")}
    return Engine(**{**told, "precision": "int8+fp16", "batch": Batch(1, 2, 4), **change})


def test_an_engine_is_recorded_and_says_what_it_does_not_fit() -> None:
    one = engine(loop=True, axes={"T": (1, 2, 3)})
    assert Engine.read(json.loads(json.dumps(one.record()))) == one
    without = {name: told for name, told in engine().record().items() if name not in ("axes", "loop")}
    assert Engine.read(without) == engine()
    assert (engine().loop, dict(engine().axes)) == (False, {})
    assert len({one, engine(), Engine.read(one.record())}) == 2  # as keys, whatever their axes
    assert one.unfit("10.3", "sm89") is one.unfit("10.3", None) is None
    assert one.unfit("10.4", None) == "engines/a needs tensorrt 10.3, and 10.4 is installed: build it again"
    told = "engines/a was built for sm86, sm89, and this GPU is sm90: build it again"
    assert one.unfit("10.3", "sm90") == told
    for wrong in ({"flavour": "openvino"}, {"precision": "FP16"}, {"precision": ""}, {"precision": "fp16/"}):
        with pytest.raises(ValueError, match="engine engines/a is of"):
            engine(**wrong)


def test_a_report_is_kept_and_numbers_are_numbers() -> None:
    step = {"gamma": [1, 0.5], "error_before": 2, "error_after": 1}
    told: dict[str, Any] = {
        "model": "m", "fingerprint": "f", "settings": {"nfe": 2}, "target": "local", "schedule": "edm", "heldout": 4,
        "heldout_rms_error": 1, "steps": [step], "compared": {"ddim": 1}, "refinement": [2, 1], "examples": [3, 4],
        "evaluations": 5, "seconds": 6,
    }  # fmt: skip
    report = FitReport.read(told)
    assert json.loads(json.dumps(report.record())) == told
    assert FitReport.read(report.record()) == report
    for frozen, name in ((report, "seconds"), (report.steps[0], "error_after")):
        with pytest.raises(FrozenInstanceError):
            setattr(frozen, name, 0.0)
    numbers = (*report.steps[0].gamma, report.seconds, *report.refinement, *report.compared.values())
    assert {type(number) for number in numbers} == {float}
    for name in told:
        with pytest.raises((KeyError, TypeError, ValueError)):
            FitReport.read({key: value for key, value in told.items() if key != name})


SHAPES: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "noise": ("float32", ("batch", 2, "T")), "mask": ("bool", ("batch", "T")), "free": ("int64", (-1, 0, 1)),
}  # fmt: skip


def arrays(**change: Any) -> dict[str, np.ndarray]:
    sound = {
        "noise": np.zeros((3, 2, 5), np.float32),
        "mask": np.ones((3, 5), bool),
        "free": np.zeros((7, 8, 1), np.int64),
    }
    return {name: array for name, array in {**sound, **change}.items() if array is not None}


def test_what_a_graph_takes_is_asked_for() -> None:
    check_inputs(SHAPES, arrays(), "it")
    check_inputs(SHAPES, arrays(free=np.zeros((1, 1, 1), np.int64)), "it")
    twice = {**SHAPES, "more": ("float64", ("2*T",))}
    check_inputs(twice, arrays(more=np.zeros(10)), "it")
    for size in (8, 11):
        with pytest.raises(UserError, match=r"it takes more as float64 \[2\*T\]"):
            check_inputs(twice, arrays(more=np.zeros(size)), "it")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mask": None}, "it takes free, mask, noise, and was given free, noise$"),
        ({"more": np.zeros(1)}, "and was given free, mask, more, noise$"),
        (
            {"free": np.zeros((7, 8, 2), np.int64)},
            r"it takes free as int64 \[-1, 0, 1\], and was given int64 \[7, 8, 2\]",
        ),
        ({"noise": np.zeros((3, 2, 5), bool)}, r"was given bool \[3, 2, 5\]"),
        ({"mask": np.ones((3, 5))}, r"it takes mask as bool \[batch, T\], and was given float64 \[3, 5\]"),
        ({"mask": np.ones((3, 5, 1), bool)}, r"was given bool \[3, 5, 1\]"),
        ({"mask": np.ones((3, 4), bool)}, r"was given bool \[3, 4\]"),
        ({"mask": np.ones((2, 5), bool)}, r"was given bool \[2, 5\]"),
        ({"noise": np.zeros((3, 3, 5), np.float32)}, r"takes noise as float32 \[batch, 2, T\], and was given"),
        ({"noise": np.zeros((3, 1, 5), np.float32)}, r"takes noise as"),
    ],
)
def test_what_a_graph_does_not_take_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check_inputs(SHAPES, arrays(**change), "it")
    with pytest.raises(UserError, match=r"and was given nothing$"):
        check_inputs(SHAPES, {}, "it")


INPUTS = Inputs((2, 3), {"hint": Condition((4,)), "label": Condition((), "int64")})
TAKEN: dict[str, tuple[str, tuple[Any, ...]]] = {
    "noise": ("float32", ("batch", 2, 3)), "hint": ("float32", (None, "n")), "label": ("int64", ("batch",)),
}  # fmt: skip


def declared(**change: Any) -> None:
    takes = {name: one for name, one in {**TAKEN, **change}.items() if one}
    check_declared(SimpleNamespace(inputs=INPUTS), takes, "a.onnx")  # type: ignore[arg-type]


def test_a_graph_takes_what_the_manifest_says() -> None:
    declared()
    declared(noise=("float32", ("batch", 2, "w")))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hint": None}, "a.onnx takes noise, label, and manifest.json says hint, label, noise: export it again"),
        ({"other": ("bool", ("n",))}, "a.onnx takes noise, hint, label, other, and"),
        ({"hint": ("float64", ("n", 4))}, r"takes hint as float64 \[4\], and manifest.json says float32 \[4\]"),
        ({"hint": ("float32", ("n", 5))}, r"takes hint as float32 \[5\]"),
        ({"hint": ("float32", ("n", 4, 1))}, r"takes hint as float32 \[4, 1\]"),
        ({"noise": ("float32", ("n", 2, 2))}, r"takes noise as float32 \[2, 2\]"),
        ({"hint": ("float32", ())}, r"takes hint as float32 \[\]"),
    ],
)
def test_a_graph_that_takes_something_else_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        declared(**change)


def test_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    held = np.ones(2**23)
    assert resident_memory() > held.nbytes

    def none(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", none)
    assert resident_memory() == 0


def test_a_backend_knows_its_memory_and_whether_it_looks_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(gpu: bool, open_graph: Any) -> Backend:
        return Backend("b", 1, lambda: None, lambda bundle, precision: None, open, open_graph, gpu)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda, "used_memory", lambda: 7)
    monkeypatch.setattr(base, "resident_memory", lambda: 8)
    assert [backend(gpu, None).used_memory() for gpu in (True, False)] == [7, 8]
    assert [backend(True, graph).inner_values for graph in (None, open)] == [False, True]
    assert Spans(1.0, 2.0, 3.0) == Spans(host_to_device=1.0, compute=2.0, device_to_host=3.0)


WANTED = {"noise": Wanted(FLOAT, ((2, 2), (1, 8))), "label": Wanted(np.dtype(np.int64), ())}


def fed(**change: Any) -> dict[str, np.ndarray]:
    sound = {"noise": np.zeros((3, 2, 5), np.float32), "label": np.zeros(3, np.int64)}
    return {name: array for name, array in {**sound, **change}.items() if array is not None}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"label": None}, "the engine takes noise, label, and was given noise"),
        ({"label": None, "noise": None}, "and was given nothing"),
        (
            {"noise": np.zeros((3, 2, 5))},
            r"noise is float64 \[3, 2, 5\]; the engine takes float32 \[batch, 2, 1 to 8\]",
        ),
        ({"noise": np.zeros((3, 2, 5), np.float16)}, r"noise is float16 \[3, 2, 5\]"),
        ({"noise": np.zeros((3, 2, 9), np.float32)}, r"noise is float32 \[3, 2, 9\]"),
        ({"noise": np.zeros((3, 2, 0), np.float32)}, r"noise is float32 \[3, 2, 0\]"),
        ({"noise": np.zeros((3, 2), np.float32)}, r"noise is float32 \[3, 2\]"),
        ({"label": np.zeros((3, 1), np.int64)}, r"label is int64 \[3, 1\]; the engine takes int64 \[batch\]$"),
        ({"label": np.zeros(2, np.int64)}, r"label is int64 \[2\]; .* of one batch for all, 1 or more: noise, label"),
        ({"label": np.zeros(4, np.int64)}, r"label is int64 \[4\]; .* of one batch for all"),
        ({"label": np.zeros(0, np.int64), "noise": np.zeros((0, 2, 5), np.float32)}, "1 or more"),
    ],
)
def test_an_engine_is_fed_what_it_takes(change: dict[str, Any], told: str) -> None:
    check_feed(fed(), WANTED)
    for length in (1, 8):
        check_feed(fed(noise=np.zeros((3, 2, length), np.float32)), WANTED)
    with pytest.raises(UserError, match=told):
        check_feed(fed(**change), WANTED)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (Batch(1, 2, 2), [([0, 1], 2), ([2, 3], 2), ([4], 1)]),
        (Batch(4, 4, 4), [([0, 1, 2, 3], 4), ([4, 4, 4, 4], 1)]),
        (Batch(2, 2, 3), [([0, 1, 2], 3), ([3, 4], 2)]),
        (Batch(7, 7, 9), [([0, 1, 2, 3, 4, 4, 4], 5)]),
        (Batch(1, 1, 5), [([0, 1, 2, 3, 4], 5)]),
    ],
)
def test_a_feed_is_split_and_padded_to_the_profile(batch: Batch, expected: list[Any]) -> None:
    rows = np.arange(5)
    found = list(split({"noise": rows, "c": rows * 10}, batch))
    assert [(part["noise"].tolist(), count) for part, count in found] == expected
    assert all((part["c"] == part["noise"] * 10).all() for part, _ in found)


def test_what_an_engine_wants_is_in_its_profile() -> None:
    shapes = {"noise": ((1, 2, 1), (2, 2, 4), (4, 2, 8)), "label": ((1,), (2,), (4,)), "images": None}

    class Built:
        num_io_tensors = 3
        get_tensor_name = staticmethod(list(shapes).__getitem__)
        get_tensor_mode = staticmethod(lambda name: "out" if name == "images" else "in")
        get_tensor_dtype = staticmethod(lambda name: np.int64 if name == "label" else np.float32)

        @staticmethod
        def get_tensor_profile_shape(name: str, profile: int) -> Any:
            assert profile == 0
            return shapes[name]

    library: Any = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"), nptype=lambda dtype: dtype)
    built: Any = Built()
    assert wanted_by(library, built) == WANTED
