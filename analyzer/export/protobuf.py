"""Just enough of Protocol Buffers' wire format to write messages: varints, numbers and bytes with their field numbers."""

from __future__ import annotations

import struct

_VARINT = 0
_FIXED64 = 1
_BYTES = 2


def varint(number: int) -> bytes:
    """An unsigned number, seven bits a byte, the lowest first; a negative one is written in 64-bit two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def integer(field: int, number: int) -> bytes:
    """A field of any integer type that is a varint on the wire."""
    return varint(field << 3 | _VARINT) + varint(number)


def double(field: int, number: float) -> bytes:
    """A field of type double."""
    return varint(field << 3 | _FIXED64) + struct.pack("<d", number)


def message(field: int, *parts: bytes) -> bytes:
    """A field that holds bytes or another message, made of its own fields."""
    content = b"".join(parts)
    return varint(field << 3 | _BYTES) + varint(len(content)) + content


def string(field: int, text: str) -> bytes:
    """A field of type string."""
    return message(field, text.encode())
