"""
What was freed goes back to the system: after a large answer the C library would keep most of it for later.

The end of the heap, which it would give back at once, is kept until then, too: see ``shallop_pod.heap``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["give_back"]

_EVERY_S = 30.0
# As much more than after the last time is worth a look; it takes about 15 ms, in another thread.
_GROWN_BYTES = 16 << 20


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
