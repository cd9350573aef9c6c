"""
Pages of memory that a forked process will write to, made its own at once instead of one by one.

A forked process shares its memory with the fork-server until it writes; Python writes to every object that it uses, a
small task to 1,300 pages. Each costs 4 µs of the time of who waits for the task, unless it was copied before. Which
these are is seen once, in a process that runs one to see it.

Source: Documentation/admin-guide/mm/pagemap.rst of the kernel; madvise(2), MADV_POPULATE_WRITE (Linux 5.14).
"""

from __future__ import annotations

import array
import ctypes
import mmap
from typing import List, Sequence, Tuple  # noqa: UP035  environments may be Python 3.9

__all__ = ["Ranges", "own", "written"]

Ranges = List[Tuple[int, int]]  # noqa: UP006  start and length, in bytes
_PRESENT, _OF_A_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_MADV_POPULATE_WRITE = 23
# A page more is copied faster than the kernel is called once more.
_GAP = 2

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def written() -> Ranges:
    """Return what this process alone has, of memory that it and its parent had when it was forked and since."""
    found: list[int] = []
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in list(maps):
            place, kind, *_ = line.split(maxsplit=2)
            if not kind.startswith("rw-p") or "[v" in line:
                continue
            first, last = (int(address, 16) // mmap.PAGESIZE for address in place.split("-"))
            pagemap.seek(first * 8)
            entries = array.array("Q", pagemap.read((last - first) * 8))
            mine = _PRESENT | _EXCLUSIVE
            found += [first + n for n, entry in enumerate(entries) if entry & (mine | _OF_A_FILE) == mine]
    return _joined(found)


def _joined(pages: Sequence[int]) -> Ranges:
    ranges: Ranges = []
    for page in pages:
        if ranges and page - ranges[-1][1] <= _GAP:
            ranges[-1] = (ranges[-1][0], page)
        else:
            ranges.append((page, page))
    return [(first * mmap.PAGESIZE, (last + 1 - first) * mmap.PAGESIZE) for first, last in ranges]


def own(ranges: Ranges) -> None:
    """Make ranges of memory this process's own; what is not there (any more), or not possible, stays as it is."""
    for start, length in ranges:
        _libc.madvise(start, length, _MADV_POPULATE_WRITE)
