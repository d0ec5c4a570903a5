"""Hostile and damaged weights files: one clear error, and nothing of theirs runs."""

import collections
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from edge_sampler.models import checkpoint
from edge_sampler.runtime.errors import UserError
from tests.conftest import DATA

OFFICIAL = DATA / "official-format-tiny.pkl"


class Call:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def save(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def nested(command: str) -> bytes:
    """A torch file whose pickle calls os.system."""
    buffer = io.BytesIO()
    torch.save(Call(os.system, command), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("make", ["system", "eval", "getattr", "storage", "storage-pickle", "builtins-in-ordereddict"])
def test_payloads_do_not_run(make: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    command = f"touch {mark}"
    load_from_bytes = torch.storage._load_from_bytes
    payload = {
        "system": Call(os.system, command),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "getattr": Call(getattr, object, "__subclasses__"),
        "storage": Call(load_from_bytes, nested(command)),
        "storage-pickle": Call(load_from_bytes, pickle.dumps(Call(os.system, command))),
        "builtins-in-ordereddict": collections.OrderedDict(ema=Call(exec, f"open({str(mark)!r}, 'w')")),
    }[make]
    with pytest.raises(UserError):
        checkpoint.read(save(tmp_path / "hostile.pkl", {"ema": payload}))
    assert not mark.exists()


def test_what_a_pickle_may_not_name_is_told(tmp_path: Path) -> None:
    path = save(tmp_path / "hostile.pkl", {"ema": Call(eval, "1")})
    told = (
        r"hostile\.pkl: refused: the pickle names 'builtins\.eval', which no EDM snapshot needs; nothing was executed$"
    )
    with pytest.raises(UserError, match=told):
        checkpoint.read(path)


def test_module_source_is_not_executed(tmp_path: Path) -> None:
    """The official loader runs module_src; ours loads the very same network without looking at it."""
    mark = tmp_path / "executed"
    source = f"open({str(mark)!r}, 'w')".encode()
    content = OFFICIAL.read_bytes()
    key, memoize, text = b"\x8c\x0amodule_src", b"\x94", b"\x8c"  # SHORT_BINUNICODE, MEMOIZE
    empty = key + memoize + text + b"\x00"
    assert content.count(empty) == 1
    frame_size = int.from_bytes(content[3:11], "little") + len(source)  # protocol 4: PROTO 4, FRAME, 8 bytes of size
    filled = content.replace(empty, key + memoize + text + bytes([len(source)]) + source)
    path = tmp_path / "with-source.pkl"
    path.write_bytes(filled[:3] + frame_size.to_bytes(8, "little") + filled[11:])
    loaded, original = checkpoint.read(path), checkpoint.read(OFFICIAL)
    assert checkpoint.weights_sha256(loaded.tensors) == checkpoint.weights_sha256(original.tensors)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 5_000, 400_000, 825_000])
def test_truncated_pickles_are_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.pkl"
    path.write_bytes(OFFICIAL.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.pkl"):
        checkpoint.read(path)


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".safetensors"])
def test_noise_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"noise{suffix}"
    path.write_bytes(os.urandom(1000))
    with pytest.raises(UserError, match="noise"):
        checkpoint.read(path)


def test_a_state_dict_file_cannot_run_code_either(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "hostile.pt"
    path.write_bytes(nested(f"touch {mark}"))
    assert zipfile.is_zipfile(path)
    with pytest.raises(UserError, match=r"names \w+\.system, which no state dict needs; nothing was executed"):
        checkpoint.read(path)
    assert not mark.exists()


def test_state_dicts_of_before_pytorch_1_6(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoint.read(tmp_path / "legacy.pt").tensors["a"], tensors["a"])


@pytest.mark.parametrize(
    "change",
    [lambda keys: keys[:-1], lambda keys: [], lambda keys: [*keys, "x"], lambda keys: [keys[1], keys[1]], str],
)
@pytest.mark.parametrize("within_snapshot", [False, True])
def test_each_storage_has_its_values_once(change: Callable[[Any], Any], within_snapshot: bool, tmp_path: Path) -> None:
    """In files of before PyTorch 1.6, which fills those alone that a list names: others would be what memory holds."""
    content = io.BytesIO()
    torch.save({"a": torch.ones(3), "b": torch.zeros(2)}, content, _use_new_zipfile_serialization=False)
    content.seek(0)
    heads = list[bytes]()
    for _ in range(4):
        start = content.tell()
        list(pickletools.genops(content))
        heads.append(content.getvalue()[start : content.tell()])
    keys = pickle.load(content)
    path = tmp_path / "legacy.pt"
    path.write_bytes(b"".join(heads) + pickle.dumps(change(keys), 2) + content.read())
    with pytest.raises(UserError, match="list of stored values is not that of its tensors"):
        checkpoint._storage(path.read_bytes()) if within_snapshot else checkpoint.read(path)


@pytest.mark.parametrize(("size", "stride"), [((10**6, 10**6), (0, 0)), ((5,), (1,))])
def test_a_tensor_cannot_claim_more_than_is_stored(
    size: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    storage = torch.zeros(4).storage()  # type: ignore[no-untyped-call]
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, size, stride, False, collections.OrderedDict())
    with pytest.raises(UserError, match="claims more values"):
        checkpoint.read(save(tmp_path / "bomb.pkl", {"ema": tensor}))


@pytest.mark.parametrize("content", [{}, [], 3, {"ema": 3}, {"ema": {"a": torch.zeros(1)}}])
def test_other_pickles_are_not_snapshots(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an EDM snapshot: it has no network under 'ema'"):
        checkpoint.read(save(tmp_path / "other.pkl", content))


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file"):
        checkpoint.read(tmp_path / "absent.pkl")
    (tmp_path / "a.h5").touch()
    with pytest.raises(UserError, match="unknown weights format"):
        checkpoint.read(tmp_path / "a.h5")


def unpickled(content: Any) -> Any:
    return checkpoint._EDMUnpickler(io.BytesIO(pickle.dumps(content))).load()


def test_a_row_of_float32_beside_a_network_is_read_and_no_other_array() -> None:
    assert unpickled(np.array([0.5, -2.0], "<f4")).numbers().tolist() == [0.5, -2.0]
    assert unpickled(np.zeros(0, "<f4")).numbers().shape == (0,)
    for other in (np.zeros(2), np.zeros(2, ">f4"), np.zeros(2, "<i4"), np.zeros((1, 2), "<f4"), np.zeros((), "<f4")):
        with pytest.raises(UserError, match="no row of float32"):
            unpickled(other).numbers()
    for built in (None, (1, (2,), None, False, bytes(8)), (1, (2,), unpickled(np.dtype("<f4")), False, [0.5, 1.0])):
        array: Any = checkpoint._Array()
        array.built = built
        with pytest.raises(UserError, match="no row of float32"):
            array.numbers()
    bare = checkpoint._Holder("f4")  # a dtype that says nothing of its order
    array.built = (1, (2,), bare, False, bytes(8))
    with pytest.raises(UserError, match="no row of float32"):
        array.numbers()


@pytest.mark.parametrize(
    ("raised", "told"), [("first\nsecond\nthird", "first"), ("a" * 300, "a" * 200)], ids=["lines", "length"]
)
def test_what_a_reader_raises_is_told_in_one_line(
    raised: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise ValueError(raised)

    monkeypatch.setattr(checkpoint, "_read_safetensors", fails)
    (tmp_path / "a.safetensors").touch()
    with pytest.raises(UserError) as error:
        checkpoint.read(tmp_path / "a.safetensors")
    assert str(error.value).endswith(f"a.safetensors: damaged or not a .safetensors weights file (ValueError: {told})")

    def full(path: Path) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoint, "_read_safetensors", full)
    with pytest.raises(MemoryError):
        checkpoint.read(tmp_path / "a.safetensors")


def test_hashes_are_of_names_shapes_and_values() -> None:
    one = {"b": torch.ones(2, 3), "a": torch.zeros(1)}
    turned = {"a": torch.zeros(1), "b": torch.ones(3, 2).T}
    assert checkpoint.weights_sha256(one) == checkpoint.weights_sha256(turned)
    assert checkpoint.weights_sha256(one) == checkpoint.weights_sha256({**one, "b": torch.ones(2, 3).double()})
    assert checkpoint.shapes_sha256(one) == checkpoint.shapes_sha256({**one, "a": torch.ones(1)})
    for other in ({"b": one["b"], "c": one["a"]}, {**one, "b": torch.ones(3, 2)}, {**one, "a": torch.ones(1)}):
        assert checkpoint.weights_sha256(one) != checkpoint.weights_sha256(other)
    for other in ({"b": one["b"], "c": one["a"]}, {**one, "b": torch.ones(3, 2)}):
        assert checkpoint.shapes_sha256(one) != checkpoint.shapes_sha256(other)


def test_what_a_safetensors_file_says_of_its_network(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"architecture": '{"x": 1}', "b": "c"})
    found = checkpoint.read(tmp_path / "a.safetensors")
    assert found.architecture == {"x": 1}
    assert found.metadata == {"architecture": '{"x": 1}', "b": "c"}
    safetensors.torch.save_file(tensors, tmp_path / "b.safetensors")
    found = checkpoint.read(tmp_path / "b.safetensors")
    assert (found.architecture, found.metadata) == (None, {})
    assert torch.equal(found.tensors["a"], tensors["a"])


@pytest.mark.parametrize("key", ["", "ema", "state_dict"])
def test_a_state_dict_is_found_bare_or_under_a_name(key: str, tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0)}
    torch.save({key: state, "step": 3} if key else state, tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.pt").tensors.keys() == {"a"}


def test_of_parameters_in_a_state_dict_the_tensors_are_read(tmp_path: Path) -> None:
    """A buffer of a network takes no parameter."""
    torch.save({"a": torch.nn.Parameter(torch.arange(3.0))}, tmp_path / "a.pt")
    found = checkpoint.read(tmp_path / "a.pt").tensors["a"]
    assert (type(found), found.requires_grad, found.tolist()) == (torch.Tensor, False, [0, 1, 2])


@pytest.mark.parametrize("content", [{}, {"a": 1.0, "b": torch.zeros(1)}, [torch.zeros(1)], {"ema": {}}, 3])
def test_what_holds_no_tensors_by_name_is_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match="not a state dict: expected tensors by name"):
        checkpoint.read(tmp_path / "a.pt")


def test_a_modules_tensors_are_those_that_it_keeps() -> None:
    def holder(**state: Any) -> Any:
        made = checkpoint._Holder()
        made.state = state
        return made

    one, other, gone = torch.zeros(1), torch.ones(1), torch.ones(2)
    inner = holder(_parameters={"w": other, "none": None})
    outer = holder(
        _parameters={"b": one},
        _buffers={"kept": other, "gone": gone},
        _non_persistent_buffers_set={"gone"},
        _modules={"in": inner, "none": None},
    )
    assert dict(checkpoint._walk(outer)) == {"b": one, "kept": other, "in.w": other}


@pytest.mark.parametrize(
    ("size", "stride", "offset", "stored"),
    [((2, 2), (2,), 0, 4), ((2,), (-1,), 1, 4), ((2,), (1,), -1, 4), ((True,), (1,), 0, 4), ((2.0,), (1,), 0, 4)],
)
def test_a_view_of_odd_numbers_is_none(size: Any, stride: Any, offset: int, stored: int) -> None:
    with pytest.raises(UserError, match="has an offset and strides that are none"):
        checkpoint.check_view(offset, size, stride, stored)
    checkpoint.check_view(99, (0, 3), (7, 7), 0)  # of no values
    checkpoint.check_view(0, (1, 4), (0, 1), 4)  # of one value along an axis, whose stride nobody needs


def test_a_state_dicts_tensor_with_one_value_for_all_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1).expand(8)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="claims more values than it has, some of them repeatedly"):
        checkpoint.read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_values_of_every_float_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4).to(dtype)}, tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.pt").tensors["a"].float().tolist() == [1.0] * 4


def test_values_that_share_a_byte_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}, tmp_path / "a.pt")
    with pytest.raises(
        UserError, match=r"'a' holds torch.float4_e2m1fn_x2, which is not read: store its values in float32"
    ):
        checkpoint.read(tmp_path / "a.pt")


def test_complex_weights_are_told_apart_by_both_parts() -> None:
    one, other = torch.tensor([1 + 2j]), torch.tensor([1 + 3j])
    assert checkpoint.weights_sha256({"w": one}) != checkpoint.weights_sha256({"w": other})
    assert checkpoint.weights_sha256({"w": one.conj()}) == checkpoint.weights_sha256({"w": torch.tensor([1 - 2j])})
