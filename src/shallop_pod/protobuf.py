"""
The wire format of Protocol Buffers, as far as a few small messages need it; for the control plane and for Pods.

Source: Protocol Buffers encoding, https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from typing import Any, Iterator  # noqa: UP035  environments may be Python 3.9

__all__ = [
    "ProtobufError",
    "bytes_field",
    "fields_of",
    "number_field",
    "read_varint",
    "text_field",
    "varint",
    "wire_fields",
]


class ProtobufError(ValueError):
    """Bytes that are no message."""


def fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """
    Yield number and value of each field in order: an int for a varint, else its bytes (fixed 4, fixed 8, delimited).

    Raises:
        ProtobufError: the message is cut off or has an unknown wire type.
    """
    return ((number, value) for number, _, value in wire_fields(data))


def wire_fields(data: Any) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and value of each field, as ``fields_of``; of a memoryview the bytes are views."""
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = read_varint(data, position)
            yield number, wire, value
            continue
        if wire == 2:
            size, position = read_varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ProtobufError(f"the message has a field of wire type {wire}, which is not known")
        if position + size > len(data):
            raise ProtobufError("the message ends within a field")
        yield number, wire, data[position : position + size]
        position += size


def read_varint(data: Any, position: int) -> tuple[int, int]:
    """Return the number that begins at ``position``, and where it ends; ProtobufError when it is cut off."""
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtobufError("the message is no Protocol Buffers message: a number is cut off")


def varint(value: int) -> bytes:
    """Render a number; a negative one in ten bytes, as proto3 does."""
    value &= 0xFFFFFFFFFFFFFFFF
    if value < 0x80:
        return bytes((value,))
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def number_field(number: int, value: int) -> bytes:
    """Return a varint field; nothing for 0, as proto3 does."""
    return varint(number << 3) + varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a delimited field, also when it is empty: a message that is there."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def text_field(number: int, text: str) -> bytes:
    """Return a string field; nothing for an empty one, as proto3 does."""
    return bytes_field(number, text.encode()) if text else b""
