"""Hostile and damaged weights files: one clear error, and nothing of theirs runs."""

import collections
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
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
    with pytest.raises(UserError, match=r"names .*which no state dict needs; nothing was executed"):
        checkpoint.read(path)
    assert not mark.exists()


def test_state_dicts_of_before_pytorch_1_6(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3)}
    torch.save(tensors, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoint.read(tmp_path / "legacy.pt").tensors["a"], tensors["a"])


def test_a_tensor_cannot_claim_more_than_is_stored(tmp_path: Path) -> None:
    storage = torch.zeros(4).storage()  # type: ignore[no-untyped-call]
    tensor = Call(torch._utils._rebuild_tensor_v2, storage, 0, (10**6, 10**6), (0, 0), False, collections.OrderedDict())
    with pytest.raises(UserError, match="claims more values"):
        checkpoint.read(save(tmp_path / "bomb.pkl", {"ema": tensor}))


@pytest.mark.parametrize("content", [{}, [], 3, {"ema": 3}, {"ema": {"a": torch.zeros(1)}}])
def test_other_pickles_are_not_snapshots(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        checkpoint.read(save(tmp_path / "other.pkl", content))


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no weights file"):
        checkpoint.read(tmp_path / "absent.pkl")
    (tmp_path / "a.h5").touch()
    with pytest.raises(UserError, match="unknown weights format"):
        checkpoint.read(tmp_path / "a.h5")
