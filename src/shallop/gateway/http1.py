"""Just enough HTTP/1.1 to route a message and to know where it ends. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Body", "Head", "MessageError", "is_header", "parse_request", "parse_response"]


# What a name may not hold besides letters, digits and its own marks (RFC 9110, "token"), and a value not at all.
_BAD_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9A-Za-z-]")
_BAD_VALUE = re.compile(rb"[\0\r\n]")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,15}[ \t]*(;[^\0\r\n]*)?")
_MAX_TRAILERS = 8192


class MessageError(Exception):
    """A message that must not be forwarded; ``status`` is what its sender is told."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Head(NamedTuple):
    """
    The start of a message.

    Args:
        start: the three parts of the first line.
        lines: header lines as sent.
        host: value of Host, without port, lower case; empty in responses.
        keep_alive: whether the connection may carry another message.
        length: bytes of the body; -1 chunked; -2 until the connection ends (responses only).
        hop: names of headers, lower case, that the sender meant for this connection only.
    """

    start: tuple[bytes, bytes, bytes]
    lines: list[bytes]
    host: bytes
    keep_alive: bool
    length: int
    hop: frozenset[bytes] = frozenset()

    def render(self, *, drop: frozenset[bytes] = frozenset(), add: tuple[bytes, ...] = ()) -> bytes:
        """Write the head again without the headers named in ``drop`` (lower case) and with the lines of ``add``."""
        lines = self.lines
        if drop:
            lines = [line for line in lines if line.partition(b":")[0].lower() not in drop]
        return b"\r\n".join([b" ".join(self.start), *lines, *add, b"", b""])


def _fields(lines: list[bytes]) -> tuple[bytes, frozenset[bytes], int | None, bool]:
    """Return Host, Connection, Content-Length and whether it is chunked; refuse what two readers could differ on."""
    host = connection = b""
    length: int | None = None
    chunked = False
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or _BAD_NAME.search(name) or _BAD_VALUE.search(value):
            raise MessageError("malformed header line")
        size = len(name)
        # Only three lengths of names matter here; most headers are passed on unread.
        if size == 4 and name.lower() == b"host":
            if host:
                raise MessageError("two Host headers")
            host = value.strip(b" \t")
        elif size == 10 and name.lower() == b"connection":
            connection += b"," + value.lower()
        elif size == 14 and name.lower() == b"content-length":
            text = value.strip(b" \t")
            if not text.isdigit() or len(text) > 18 or (length is not None and length != int(text)):
                raise MessageError("bad Content-Length")
            length = int(text)
        elif size == 17 and name.lower() == b"transfer-encoding":
            if chunked or value.strip(b" \t").lower() != b"chunked":
                raise MessageError("only the transfer encoding 'chunked' is supported", 501)
            chunked = True
    if chunked and length is not None:
        raise MessageError("Content-Length and Transfer-Encoding in one message")
    return host, _options(connection), length, chunked


def is_header(name: bytes, value: bytes) -> bool:
    """Say whether name and value can be a header line."""
    return bool(name) and not _BAD_NAME.search(name) and not _BAD_VALUE.search(value)


def _options(connection: bytes) -> frozenset[bytes]:
    return frozenset(option.strip(b" \t") for option in connection.split(b",")) if connection else frozenset()


def parse_request(head: bytes) -> Head:
    """
    Read a request head, given without its final empty line.

    Raises:
        MessageError: it is no HTTP/1.1 or 1.0 request for a path, or one that could be read in two ways.
    """
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0") or not parts[0] or _BAD_NAME.search(parts[0]):
        raise MessageError("this is no HTTP/1.1 request")
    method, target, version = parts
    if not target.startswith(b"/") or _BAD_VALUE.search(target):
        raise MessageError("the target of a request must be a path that begins with '/'")
    host, connection, length, chunked = _fields(lines)
    if version == b"HTTP/1.1" and not host:
        raise MessageError("the Host header is missing")
    if version == b"HTTP/1.0" and chunked:
        raise MessageError("Transfer-Encoding in an HTTP/1.0 request")
    keep_alive = version == b"HTTP/1.1" and b"close" not in connection
    name = host.partition(b":")[0] if not host.startswith(b"[") else host[1:].partition(b"]")[0]
    size = -1 if chunked else length or 0
    return Head((method, target, version), lines, name.lower().rstrip(b"."), keep_alive, size, connection)


def parse_response(head: bytes, method: bytes) -> Head:
    """Read a response head; ``method`` of its request decides whether a body follows."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.1", b"HTTP/1.0") or len(parts[1]) != 3 or not parts[1].isdigit():
        raise MessageError("the backend answered with something that is no HTTP/1.1 response", 502)
    _, connection, length, chunked = _fields(lines)
    keep_alive = b"close" not in connection and parts[0] == b"HTTP/1.1"
    if method == b"HEAD" or parts[1] in (b"204", b"304") or parts[1].startswith(b"1"):
        size = 0
    elif chunked:
        size = -1
    else:
        size = -2 if length is None else length
    start = (b"HTTP/1.1", parts[1], parts[2] if len(parts) > 2 else b"")
    return Head(start, lines, b"", keep_alive, size, connection)


class Body:
    """Follows a body that streams by, to know where it ends; ``length`` as in Head."""

    def __init__(self, length: int) -> None:
        self._left = length if length >= 0 else 0
        self._mode = length if length < 0 else 0
        self._line = bytearray()
        self._trailers = 0
        # Chunked: size line -> data -> its line end -> size line ... -> trailers after the chunk of size 0.
        self._state = "size"
        self.done = length == 0

    def feed(self, data: bytes) -> int:
        """Return how many bytes of ``data`` belong to this body."""
        if self.done:
            return 0
        if self._mode == -2:
            return len(data)
        if self._mode == 0:
            taken = min(self._left, len(data))
            self._left -= taken
            self.done = self._left == 0
            return taken
        return self._feed_chunked(data)

    def _feed_chunked(self, data: bytes) -> int:
        position = 0
        while position < len(data) and not self.done:
            if self._state == "data":
                taken = min(self._left, len(data) - position)
                self._left -= taken
                position += taken
                if not self._left:
                    self._state = "end"
                continue
            end = data.find(b"\n", position)
            if end < 0:
                self._line += data[position:]
                if len(self._line) > 8192:
                    raise MessageError("chunk line is too long")
                return len(data)
            self._line += data[position:end]
            position = end + 1
            if self._line[-1:] != b"\r":
                raise MessageError("a chunk line must end with CR LF")
            line = bytes(self._line[:-1])
            self._line.clear()
            self._take_line(line)
        return position

    def _take_line(self, line: bytes) -> None:
        if self._state == "end":
            if line:
                raise MessageError("a chunk is longer than its size")
            self._state = "size"
        elif self._state == "size":
            if not _CHUNK_SIZE.fullmatch(line):
                raise MessageError("bad chunk size")
            self._left = int(line.partition(b";")[0], 16)
            self._state = "data" if self._left else "trailer"
        elif line:
            self._trailers += len(line)
            if self._trailers > _MAX_TRAILERS:
                raise MessageError("trailers are longer than 8 KiB")
        else:
            self.done = True
