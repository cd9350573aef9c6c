"""
Predictions with their answers, from the gateway to whoever watches models; nothing is kept before someone reads.

The gateway puts, a part that monitors takes. A reader that is slow loses captures, which are counted, and never slows a
prediction down.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import NamedTuple

__all__ = ["Capture", "Captures"]

_MAX_COUNT, _MAX_BYTES = 10_000, 64 * 2**20
MAX_BYTES = 2 << 20
"""Of request and answer together; a larger prediction is dropped."""


class Capture(NamedTuple):
    """
    One prediction.

    Args:
        service: ``namespace/name`` of the InferenceService.
        revision: the Service that answered, which has the name of its revision.
        at: seconds since the epoch, when the request came.
        status: of HTTP; that of gRPC's status where it was a call.
        request, response: bodies as sent, chunks with their sizes; of a call its messages with their prefixes.
    """

    service: str
    revision: str
    path: str
    request_id: str
    at: float
    latency_s: float
    status: int
    request: bytes
    response: bytes
    content_type: str


class Captures:
    """A queue that drops what does not fit; of one event loop."""

    def __init__(self) -> None:
        self.wanted = False
        self.dropped = 0
        self._queue: deque[Capture] = deque()
        self._size = 0
        self._filled = asyncio.Event()

    def put(self, capture: Capture) -> None:
        size = len(capture.request) + len(capture.response)
        if len(self._queue) >= _MAX_COUNT or self._size + size > _MAX_BYTES:
            self.dropped += 1
            return
        self._queue.append(capture)
        self._size += size
        self._filled.set()

    async def take(self) -> list[Capture]:
        """Wait for captures and return all there are; the first call switches capturing on."""
        self.wanted = True
        await self._filled.wait()
        found = list(self._queue)
        self._queue.clear()
        self._size = 0
        self._filled.clear()
        return found
