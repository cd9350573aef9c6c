"""The body of a request to a server of Python's own ``http.server``: of a length, or in chunks."""

from __future__ import annotations

from email.message import Message
from io import BufferedIOBase

__all__ = ["MAX_BODY", "BodyError", "read_body"]

MAX_BODY = 512 * 2**20
_MAX_LINE = 65536
_MAX_DIGITS = 18


class BodyError(Exception):
    """The body cannot be read, and nothing after it; ``status`` is what the client is told."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def read_body(headers: Message, file: BufferedIOBase) -> bytes:
    """
    Read all of a body.

    Raises:
        BodyError: its length cannot be understood or is too large, or it is cut short.
    """
    coding, length = headers.get("Transfer-Encoding"), headers.get("Content-Length")
    if coding is None:
        if length is not None and not length.isdigit():
            raise BodyError(400, f"Content-Length: {length[:100]!r} is no number")
        return _read(file, _number((length or "0"), 10))
    if coding.strip().lower() != "chunked" or length is not None:
        raise BodyError(400, "send a Content-Length, or Transfer-Encoding: chunked")
    body = bytearray()
    while size := _chunk_size(file):
        if len(body) + size > MAX_BODY:
            raise _too_large()
        body += _read(file, size)
        if file.readline(_MAX_LINE).strip():
            raise BodyError(400, "a chunk is longer than it says")
    while file.readline(_MAX_LINE).strip():
        pass  # trailers
    return bytes(body)


def _chunk_size(file: BufferedIOBase) -> int:
    line = file.readline(_MAX_LINE).partition(b";")[0].strip()
    if not line or line.strip(b"0123456789abcdefABCDEF"):
        raise BodyError(400, f"a chunk begins with its size, not with {line[:100]!r}")
    return _number(line.decode(), 16)


def _number(digits: str, base: int) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _too_large()
    return int(digits, base)


def _read(file: BufferedIOBase, size: int) -> bytes:
    if size > MAX_BODY:
        raise _too_large()
    data = file.read(size)
    if len(data) < size:
        raise BodyError(400, "the body is cut short")
    return data


def _too_large() -> BodyError:
    return BodyError(413, f"the body is larger than {MAX_BODY >> 20} MiB")
