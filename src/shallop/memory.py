"""
When what was freed goes back to the system.

The C library gives the end of its heap back at once, and takes it again for the next large body: that costs such a
request a third more. What lies further inside it keeps for ever. We have it keep both, and give all back now and then.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["give_back", "keep_freed"]

_EVERY_S = 30.0
# As much more than after the last time is worth a look; it takes about 15 ms, in another thread.
_GROWN_BYTES = 16 << 20
# Names of mallopt(3), and what they become: so much at the end of the heap is kept, and from so much on an allocation
# is a mapping of its own (where this is not set too, it stays at 128 KiB, less than what is read from a socket).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _MAPPED_BYTES = 64 << 20, 4 << 20


def keep_freed() -> None:
    """Let the C library keep what is freed, for :func:`give_back`; does nothing where that does nothing."""
    if _trim() is not None:
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


async def give_back() -> None:
    """Look now and then until cancelled; does nothing where there is no ``malloc_trim`` (macOS, musl)."""
    if (trim := _trim()) is None:
        return
    least = _resident_bytes()
    while True:
        await asyncio.sleep(_EVERY_S)
        if _resident_bytes() > least + _GROWN_BYTES:
            await asyncio.to_thread(trim, 0)
            least = _resident_bytes()
        least = min(least, _resident_bytes())


def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if os.path.exists("/proc/self/statm") else None


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
