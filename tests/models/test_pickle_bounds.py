"""A pickle is looked at before it is loaded: the sound one passes, one that would hang or crash does not."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies

from edge_sampler.models import checkpoint, pickle_bounds
from edge_sampler.models.pickle_bounds import BOUNDS, Bounds
from edge_sampler.runtime.errors import UserError

SCALARS = strategies.none() | strategies.booleans() | strategies.integers() | strategies.text() | strategies.binary()
VALUES = strategies.recursive(
    SCALARS,
    lambda inner: (
        strategies.lists(inner)
        | strategies.tuples(inner, inner)
        | strategies.dictionaries(strategies.text(), inner)
        | strategies.sets(strategies.integers())
        | strategies.frozensets(strategies.text())
        | strategies.builds(OrderedDict, strategies.dictionaries(strategies.integers(), inner))
    ),
)


@given(VALUES, strategies.integers(0, 5))
def test_plain_values_pass_whatever_the_protocol(value: Any, protocol: int) -> None:
    content = io.BytesIO(pickle.dumps([value, value], protocol))
    pickle_bounds.check(content)
    assert not content.read()


def doubled(depth: int, leaf: Any, pair: Callable[[Any], Any]) -> Any:
    """An object that is small as long as its parts are shared."""
    for _ in range(depth):
        leaf = pair(leaf)
    return leaf


def deep(depth: int) -> bytes:
    return pickle.EMPTY_TUPLE + pickle.TUPLE1 * depth + pickle.STOP


def late(depth: int) -> Any:
    """Lists that are shared while they are empty, and filled afterwards."""
    lists: list[list[Any]] = [[] for _ in range(depth)]
    for one, other in pairwise(lists):
        one += [other, other]
    return lists


def framed(size: int, content: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + pickle.FRAME + size.to_bytes(8, "little") + content


class Loaded(BaseException):
    """No error that a reader would take for a damaged file."""


BOMBS = {
    "tuples that are shared": pickle.dumps(doubled(40, (1,), lambda part: (part, part))),
    "lists that are shared": pickle.dumps(doubled(40, [1], lambda part: [part, part])),
    "dicts that are shared": pickle.dumps(doubled(40, {}, lambda part: {"a": part, "b": part})),
    "shared before they are filled": pickle.dumps(late(40)),
    "a shared key": pickle.MARK + pickle.dumps(doubled(40, (1,), lambda part: (part, part)))[2:-1] + b"N" + b"d.",
    "deep": deep(100_000),
    "deep lists": pickle.EMPTY_LIST * 1000 + pickle.APPEND * 999 + pickle.STOP,
    "a length beyond the file's": pickle.BINBYTES8 + (2**40).to_bytes(8, "little") + pickle.STOP,
    "a frame beyond the file's": pickle.PROTO + b"\x04" + pickle.FRAME + (2**40).to_bytes(8, "little") + b"N.",
    "a frame that ends within an operation": framed(3, b"\x8c\x03abc."),
    "a frame within a frame": framed(20, framed(2, b"K\x01")[2:] + b"0" * 8 + b"."),
    "a frame beyond the end": framed(30, b"K\x01."),
    "a memo of many places": b"N" + pickle.LONG_BINPUT + (2**31).to_bytes(4, "little") + pickle.STOP,
    "nothing on the stack": pickle.TUPLE3 + pickle.STOP,
    "no mark": pickle.TUPLE + pickle.STOP,
    "no such memo": pickle.BINGET + b"\x07" + pickle.STOP,
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".PT", ".legacy.pt", "nested"])
def test_bombs_are_refused_before_they_are_loaded(
    bomb: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise Loaded

    path = tmp_path / "bomb.pkl"
    if suffix == "nested":  # a storage of an EDM snapshot
        with pytest.raises((UserError, ValueError)):
            checkpoint._storage(BOMBS[bomb])
        return
    if suffix in (".pt", ".PT"):  # PyTorch does not look at the case of a name within
        path = tmp_path / "bomb.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("bomb/data.pkl" if suffix == ".pt" else "bomb/data.PKL", BOMBS[bomb])
    elif suffix == ".legacy.pt":
        path = tmp_path / "bomb.pt"
        path.write_bytes(pickle.dumps(1) * 3 + BOMBS[bomb])
    else:
        path.write_bytes(BOMBS[bomb])
    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(checkpoint._EDMUnpickler, "load", never)
    with pytest.raises(UserError, match=r"bomb\.(pkl|pt): (refused|damaged)"):
        checkpoint.read(path)


@pytest.mark.parametrize("size", [2, 4, 5, 6])
def test_a_frame_that_ends_between_operations_passes(size: int) -> None:
    """Python's unpickler goes on behind it as the walk does."""
    content = framed(size, b"K\x01K\x020.")
    pickle_bounds.check(io.BytesIO(content))
    assert pickle.loads(content) == 1


@pytest.mark.parametrize(
    ("operation", "count"),
    [
        (pickle.TUPLE1, 1), (pickle.TUPLE2, 2), (pickle.TUPLE3, 3), (pickle.REDUCE, 2), (pickle.NEWOBJ, 2),
        (pickle.NEWOBJ_EX, 3), (pickle.BINPERSID, 1), (pickle.APPEND, 2), (pickle.SETITEM, 3), (pickle.BUILD, 2),
        (pickle.STACK_GLOBAL, 2), (pickle.DUP, 1), (pickle.POP, 1),
    ],
)  # fmt: skip
def test_an_operation_takes_as_many_objects_as_pythons(operation: bytes, count: int) -> None:
    pickle_bounds.check(io.BytesIO(b"]" * count + operation + b"."))
    with pytest.raises(ValueError, match="finds nothing on the stack"):
        pickle_bounds.check(io.BytesIO(b"]" * (count - 1) + operation + b"."))


def refused(content: bytes, told: str, bounds: Bounds = BOUNDS) -> None:
    with pytest.raises(UserError, match=told):
        pickle_bounds.check(io.BytesIO(content), bounds)


def test_operations_are_counted() -> None:
    content = pickle.dumps(list(range(100)))
    count = len(list(pickletools.genops(content)))
    pickle_bounds.check(io.BytesIO(content), Bounds(operations=count))
    refused(content, f"more than {count - 1} operations", Bounds(operations=count - 1))


def test_objects_are_as_deep_as_they_are_nested() -> None:
    bounds = Bounds(depth=4)
    for fits, deeper in ((deep(3), deep(4)), (pickle.dumps([[[[1]]]]), pickle.dumps([[[[[1]]]]]))):
        pickle_bounds.check(io.BytesIO(fits), bounds)
        refused(deeper, "nested too deep", bounds)


def written_out(value: Any) -> int:
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    return 1 + sum(map(written_out, parts)) if isinstance(value, list | tuple | dict) else 1


NESTED = strategies.recursive(
    strategies.none() | strategies.integers(),
    lambda inner: (
        strategies.lists(inner)
        | strategies.tuples(inner, inner, inner)
        | strategies.dictionaries(strategies.text(), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=50)
@given(NESTED, strategies.integers(0, 5))
def test_a_value_is_as_large_as_it_is_written_out(value: Any, protocol: int) -> None:
    content, size = pickle.dumps([value], protocol), written_out([value])
    pickle_bounds.check(io.BytesIO(content), Bounds(written_out=size))
    refused(content, "endless when written out", Bounds(written_out=size - 1))


def test_the_last_object_is_the_one_that_is_doubled() -> None:
    """Here a list is put into itself, and holds no number then."""
    bounds = Bounds(written_out=1)
    pickle_bounds.check(io.BytesIO(b"N" + pickle.EMPTY_LIST + pickle.DUP + pickle.APPEND + pickle.STOP), bounds)
    refused(pickle.EMPTY_LIST + b"N" + pickle.APPEND + pickle.STOP, "endless when written out", bounds)


def test_what_is_shared_counts_as_often_as_it_is_reached() -> None:
    shared = [1, 2]
    content = pickle.dumps([shared, shared])  # itself, and twice a list of two
    pickle_bounds.check(io.BytesIO(content), Bounds(written_out=7))
    refused(content, "endless when written out", Bounds(written_out=6))


def test_no_place_is_kept_beyond_those_that_are_needed() -> None:
    for place in (BOUNDS.operations, BOUNDS.operations + 1):
        content = b"N" + pickle.LONG_BINPUT + place.to_bytes(4, "little") + pickle.STOP
        if place == BOUNDS.operations:
            pickle_bounds.check(io.BytesIO(content))
        else:
            refused(content, "keeps an object at place 3,000,001")


def test_an_archive_has_what_it_claims(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    size = content.index(b"PK\x01\x02") + 24  # of the first entry, as the list at the end has it
    content[size : size + 4] = (10**6).to_bytes(4, "little")
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match="its entries claim more bytes than the file has"):
        checkpoint.read(tmp_path / "a.pt")


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data/0", bytes(10**7))
    with pytest.raises(UserError, match="compressed"):
        checkpoint.read(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_torch_saves_passes(legacy: bool, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(6.0).reshape(3, 2).T, "c": torch.zeros(0, 3)}
    torch.save({"ema": tensors}, tmp_path / "good.pt", _use_new_zipfile_serialization=not legacy)
    found = checkpoint.read(tmp_path / "good.pt").tensors
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.zeros(2, 2).to_sparse(), "sparse, nested, negated or empty"),
        (torch.zeros(2, 2, device="meta"), "sparse, nested, negated or empty"),
        (torch._neg_view(torch.ones(2)), "negated"),
        (torch.zeros(1).expand(1000), "repeatedly"),
    ],
    ids=["sparse", "meta", "negated", "expanded"],
)
def test_tensors_that_are_no_weights(tensor: torch.Tensor, told: str, tmp_path: Path) -> None:
    torch.save({"a": tensor}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=told):
        checkpoint.read(tmp_path / "odd.pt")


NUMBERS = strategies.integers(-1, 6)


@given(
    strategies.lists(strategies.tuples(strategies.integers(-1, 3), NUMBERS), max_size=3),
    NUMBERS,
    strategies.integers(0, 20),
)
def test_a_view_that_passes_has_each_of_its_values_once(axes: list[tuple[int, int]], offset: int, stored: int) -> None:
    sizes, strides = [size for size, _ in axes], [stride for _, stride in axes]
    places = [
        offset + sum(i * stride for i, stride in zip(index, strides, strict=True))
        for index in product(*(range(size) for size in sizes))
    ]
    try:
        checkpoint.check_view(offset, sizes, strides, stored)
    except UserError:
        return
    assert min([offset, *sizes, *strides]) >= 0
    assert all(0 <= place < stored for place in places)
    assert len(set(places)) == len(places)


@given(strategies.permutations([2, 3, 4]), strategies.permutations([0, 1, 2]), strategies.integers(0, 5))
def test_views_of_whole_arrays_pass(size: list[int], order: list[int], offset: int) -> None:
    view = torch.empty(size).permute(order)
    for more in (0, 1):
        checkpoint.check_view(offset, tuple(view.shape), view.stride(), 24 + offset + more)
    with pytest.raises(UserError, match="than are stored"):
        checkpoint.check_view(offset, tuple(view.shape), view.stride(), 23 + offset)
