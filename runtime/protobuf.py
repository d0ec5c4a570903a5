"""The little of Protocol Buffers' wire format that lets us extend an ONNX file without parsing it."""


def field_head(number: int, size: int) -> bytes:
    """What precedes a length-delimited field of ``size`` bytes: its number, and its size as a base-128 number."""
    head = bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return head + bytes([size])
