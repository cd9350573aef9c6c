"""The protobuf wire format, as far as a few small messages need it."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["ProtobufError", "bytes_field", "fields_of", "number_field", "text_field"]


class ProtobufError(ValueError):
    """Bytes that are no message."""


def fields_of(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """
    Yield number and value of each field in order: an int for a varint, else its bytes (fixed 4, fixed 8, delimited).

    Raises:
        ProtobufError: the message is cut off or has an unknown wire type.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ProtobufError(f"field {number} has wire type {wire}")
        if position + size > len(data):
            raise ProtobufError(f"field {number} is cut off")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ProtobufError("a number is cut off")


def _render_varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def number_field(number: int, value: int) -> bytes:
    """Return a varint field; nothing for 0, as proto3 does."""
    return _render_varint(number << 3) + _render_varint(value) if value else b""


def bytes_field(number: int, value: bytes) -> bytes:
    """Return a delimited field, also when it is empty: a message that is there."""
    return _render_varint(number << 3 | 2) + _render_varint(len(value)) + value


def text_field(number: int, text: str) -> bytes:
    """Return a string field; nothing for an empty one, as proto3 does."""
    return bytes_field(number, text.encode()) if text else b""
