"""
How much of what was freed the C library keeps.

It gives the end of its heap back to the system at once, and takes it again for the next large body, page by page: that
costs such a request a third more.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

__all__ = ["keep_freed"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 16 << 20
# From so much on an allocation is a mapping of its own. Once the other is set, this would stay at 128 KiB, less than
# what is read from a socket at once.
_MAPPED_BYTES = 4 << 20


def keep_freed() -> None:
    """Keep up to 16 MiB at the end of the heap; does nothing where the C library has no ``mallopt`` (macOS, musl)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
