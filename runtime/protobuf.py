"""The little of Protocol Buffers' wire format that lets us extend an ONNX file without parsing it."""

from collections.abc import Sequence


def field_head(number: int, size: int) -> bytes:
    """What precedes a length-delimited field of ``size`` bytes: its number, and its size as a base-128 number."""
    head = bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size])


def declare_outputs(names: Sequence[str]) -> bytes:
    """Bytes that, behind a serialized ModelProto, declare more graph outputs.

    Protocol Buffers merges a message that is repeated: field 7 of ModelProto is its graph, field 12 of GraphProto an
    output, field 1 of ValueInfoProto its name (onnx/onnx.proto). So a device needs no ``onnx`` package for this.
    """

    def field(number: int, payload: bytes) -> bytes:
        return field_head(number, len(payload)) + payload

    return field(7, b"".join(field(12, field(1, name.encode())) for name in names))
