"""Just enough HTTP/1.1 to route a message and to know where it ends. Pure."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Body", "Head", "MessageError", "parse_request", "parse_response"]


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
    """

    start: tuple[bytes, bytes, bytes]
    lines: list[bytes]
    host: bytes
    keep_alive: bool
    length: int

    def render(self, *, drop: frozenset[bytes] = frozenset(), add: tuple[bytes, ...] = ()) -> bytes:
        """Write the head again without the headers named in ``drop`` (lower case) and with the lines of ``add``."""
        lines = self.lines
        if drop:
            lines = [line for line in lines if line.partition(b":")[0].lower() not in drop]
        return b"\r\n".join([b" ".join(self.start), *lines, *add, b"", b""])


def _fields(lines: list[bytes]) -> tuple[bytes, bytes, int | None, bool]:
    """Return Host, Connection, Content-Length and whether it is chunked; refuse what two readers could differ on."""
    host = connection = b""
    length: int | None = None
    chunked = False
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[-1:] in b" \t" or line[:1] in b" \t":
            raise MessageError("malformed header line")
        size = len(name)
        # Only three lengths of names matter here; most headers are passed on unread.
        if size == 4 and name.lower() == b"host":
            if host:
                raise MessageError("two Host headers")
            host = value.strip()
        elif size == 10 and name.lower() == b"connection":
            connection = value.strip().lower()
        elif size == 14 and name.lower() == b"content-length":
            text = value.strip()
            if not text.isdigit() or (length is not None and length != int(text)):
                raise MessageError("bad Content-Length")
            length = int(text)
        elif size == 17 and name.lower() == b"transfer-encoding":
            if value.strip().lower() != b"chunked":
                raise MessageError("only the transfer encoding 'chunked' is supported", 501)
            chunked = True
    if chunked and length is not None:
        raise MessageError("Content-Length and Transfer-Encoding in one message")
    return host, connection, length, chunked


def parse_request(head: bytes) -> Head:
    """
    Read a request head, given without its final empty line.

    Raises:
        MessageError: it is no HTTP/1.1 request, or one that could be read in two ways.
    """
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or not parts[2].startswith(b"HTTP/1.") or b"\n" in head.replace(b"\r\n", b""):
        raise MessageError("this is no HTTP/1.1 request")
    host, connection, length, chunked = _fields(lines)
    keep_alive = connection == b"keep-alive" if parts[2] == b"HTTP/1.0" else connection != b"close"
    name = host.partition(b":")[0] if not host.startswith(b"[") else host[1:].partition(b"]")[0]
    start = (parts[0], parts[1], b"HTTP/1.1")
    return Head(start, lines, name.lower().rstrip(b"."), keep_alive, -1 if chunked else length or 0)


def parse_response(head: bytes, method: bytes) -> Head:
    """Read a response head; ``method`` of its request decides whether a body follows."""
    first, *lines = head.split(b"\r\n")
    parts = first.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise MessageError("the backend answered with something that is no HTTP/1.1 response", 502)
    _, connection, length, chunked = _fields(lines)
    keep_alive = connection != b"close" and parts[0] == b"HTTP/1.1"
    if method == b"HEAD" or parts[1] in (b"204", b"304") or parts[1].startswith(b"1"):
        size = 0
    elif chunked:
        size = -1
    else:
        size = -2 if length is None else length
    return Head((parts[0], parts[1], parts[2] if len(parts) > 2 else b""), lines, b"", keep_alive, size)


class Body:
    """Follows a body that streams by, to know where it ends; ``length`` as in Head."""

    def __init__(self, length: int) -> None:
        self._left = length if length >= 0 else 0
        self._mode = length if length < 0 else 0
        self._line = bytearray()
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
            line = bytes(self._line).rstrip(b"\r")
            self._line.clear()
            self._take_line(line)
        return position

    def _take_line(self, line: bytes) -> None:
        if self._state == "end":
            if line:
                raise MessageError("a chunk is longer than its size")
            self._state = "size"
        elif self._state == "size":
            try:
                self._left = int(line.partition(b";")[0].strip(), 16)
            except ValueError as error:
                raise MessageError("bad chunk size") from error
            self._state = "data" if self._left else "trailer"
        elif not line:
            self.done = True
