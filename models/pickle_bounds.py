"""Looks at a pickle without running it, and refuses what would hang, crash or fill the memory of whoever loads it.

A pickle is a program for a stack machine. A walk over its operations, which builds nothing, finds what each object
holds. Objects that are shared make a graph; its size when written out without sharing is what printing, comparing or
hashing one takes, and it can be exponential in the file's size.
"""

import io
import mmap
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

from edge_sampler.runtime.errors import UserError

Bytes = io.BytesIO | mmap.mmap  # a file would make room for as many bytes as an operation claims
FRAME_HEAD = 9  # bytes before a frame's content
ZIP = b"PK\x03\x04"  # begins torch.save's files since PyTorch 1.6
PICKLES_BEFORE_1_6 = 5  # magic number, version, system, the object, keys of its storages


@dataclass(frozen=True)
class Bounds:
    """What a pickle may have at the most.

    Args:
        operations: no published checkpoint has more than 100,000.
        depth: of objects within objects.
        written_out: objects, each counted as often as it is reached.
    """

    operations: int = 3_000_000
    depth: int = 200
    written_out: int = 10_000_000


BOUNDS = Bounds()


@dataclass
class _Object:
    """One of the pickle's, by what it holds."""

    holds: list["_Object"] = field(default_factory=list)


_ATOM = _Object()  # numbers, texts and names of globals
_MARK = _Object()
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_APPENDING = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}  # so many objects go into the one below
_APPENDING_ALL = ("APPENDS", "SETITEMS", "ADDITEMS")
_GATHERING = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "NEWOBJ_EX": 3, "BINPERSID": 1}
_GATHERING_ALL = ("TUPLE", "LIST", "DICT", "FROZENSET", "OBJ", "INST")
_SILENT = ("PROTO", "FRAME", "STOP")


def check_torch_file(content: Bytes, file: IO[bytes]) -> None:
    """The pickles of what ``torch.save`` wrote, in either of its formats, and that nothing in it is compressed.

    ``content`` is that of ``file``. Raises as ``check`` does.
    """
    if not is_zip(content):
        for _ in range(PICKLES_BEFORE_1_6):
            check(content)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError("refused: its entries are compressed, and torch.save compresses none")
        if sum(entry.file_size for entry in entries) > file.seek(0, io.SEEK_END):
            raise UserError("refused: its entries claim more bytes than the file has")
        for entry in entries:
            if entry.filename.lower().endswith(".pkl"):  # as PyTorch looks for them
                check(io.BytesIO(archive.read(entry)))


def is_zip(content: Bytes) -> bool:
    """Whether it is of torch.save's later format. Goes to the beginning."""
    content.seek(0)
    head = content.read(len(ZIP))
    content.seek(0)
    return head == ZIP


def check(file: Bytes, bounds: Bounds = BOUNDS) -> None:
    """Reads one pickle from where ``file`` is to its end. Raises UserError, or ValueError where it is no pickle."""
    stack: list[_Object] = []
    memo: dict[Any, _Object] = {}
    made: list[_Object] = []
    frame = 0  # where the one that is open ends
    for count, (operation, argument, place) in enumerate(pickletools.genops(cast(IO[bytes], file)), start=1):
        if count > bounds.operations:
            raise UserError(f"refused: the pickle has more than {bounds.operations:,} operations")
        frame = _frame(operation.name, argument, place or 0, frame)
        try:
            _step(operation.name, argument, stack, memo, made.append, bounds.operations)
        except (IndexError, KeyError) as error:
            raise ValueError(f"not a pickle: {operation.name} finds nothing on the stack") from error
    _check_sizes(made, bounds)


def _frame(name: str, argument: Any, place: int, frame: int) -> int:
    """Where the open frame ends, behind this operation; 0: none is open.

    Unpicklers read a frame at once. Where it ends within an operation they go on in ways of their own, and not as this
    walk does. Raises ValueError for such a one.
    """
    if frame and place > frame:
        raise ValueError("a frame of the pickle ends within an operation")
    frame = 0 if place == frame else frame
    if frame and (name == "FRAME" or (name == "STOP" and place + 1 != frame)):
        raise ValueError("a frame of the pickle does not end where it should")
    return place + FRAME_HEAD + argument if name == "FRAME" else frame


def _step(
    name: str,
    argument: Any,
    stack: list[_Object],
    memo: dict[Any, _Object],
    made: Callable[[_Object], None],
    places: int,
) -> None:
    """One operation, on objects that stand for what it would make; at the most so many ``places`` are kept."""
    if name in _SILENT:
        return
    if name in _PUT:
        if isinstance(argument, int) and argument > places:  # for which unpicklers make room
            raise UserError(f"refused: the pickle keeps an object at place {argument:,}")
        memo[len(memo) if argument is None else argument] = stack[-1]
    elif name in _GET:
        stack.append(memo[argument])
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "POP":
        stack.pop()
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "POP_MARK":
        _above_mark(stack)
    elif name in _APPENDING:
        parts = _top(stack, _APPENDING[name])
        stack[-1].holds += parts
    elif name in _APPENDING_ALL:
        parts = _above_mark(stack)
        stack[-1].holds += parts
    elif name in _GATHERING or name in _GATHERING_ALL:
        parts = _above_mark(stack) if name in _GATHERING_ALL else _top(stack, _GATHERING[name])
        new = _Object(parts)
        made(new)
        stack.append(new)
    elif name == "STACK_GLOBAL":
        _top(stack, 2)
        stack.append(_ATOM)
    elif name.startswith("EMPTY_"):
        new = _Object()
        made(new)
        stack.append(new)
    else:  # a number, a text, bytes, a global
        stack.append(_ATOM)


def _top(stack: list[_Object], count: int) -> list[_Object]:
    if len(stack) < count:
        raise IndexError
    parts = stack[-count:]
    del stack[-count:]
    return parts


def _above_mark(stack: list[_Object]) -> list[_Object]:
    parts = []
    while (part := stack.pop()) is not _MARK:
        parts.append(part)
    return parts


def _check_sizes(made: Sequence[_Object], bounds: Bounds) -> None:
    """Bounds each object's depth and its size without sharing. One that holds itself is counted once there."""
    known: dict[int, tuple[int, int]] = {id(_ATOM): (1, 0)}  # by object: size and depth
    for root in made:
        waiting, entered = [root], set[int]()
        while waiting:
            one = waiting[-1]
            if id(one) not in known and id(one) not in entered:
                entered.add(id(one))
                waiting += [part for part in one.holds if id(part) not in known and id(part) not in entered]
                continue
            waiting.pop()
            if id(one) in known:
                continue
            inside = [known[id(part)] for part in one.holds if id(part) in known]
            size, depth = 1 + sum(size for size, _ in inside), 1 + max((depth for _, depth in inside), default=0)
            if size > bounds.written_out or depth > bounds.depth:
                what = "nested too deep" if depth > bounds.depth else "shared so that they are endless when written out"
                raise UserError(f"refused: the pickle's objects are {what}, as no checkpoint's are")
            known[id(one)] = size, depth
