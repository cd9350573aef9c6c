"""
Pages of memory that a forked process will write to, made its own at once instead of one by one.

A forked process shares its memory with the fork-server until it writes; Python writes to every object that it uses, a
small task to 1,500 pages. Each costs 4 µs of the time of who waits for the task, unless it was copied before. Which
these are is seen once, in a process that runs one to see it.

Source: Documentation/admin-guide/mm/pagemap.rst of the kernel; madvise(2), MADV_POPULATE_WRITE (Linux 5.14);
process_madvise(2), for the own process with every advice (Linux 6.13).
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
import os
import sys
from typing import Iterator, List, Sequence, Tuple  # noqa: UP035  environments may be Python 3.9

__all__ = ["Pages", "owned_by_forks", "written"]

_Ranges = List[Tuple[int, int]]  # noqa: UP006  start and length, in bytes
_PRESENT, _OF_A_FILE, _EXCLUSIVE = 1 << 63, 1 << 61, 1 << 56
_MADV_POPULATE_WRITE = 23
_PROCESS_MADVISE, _PIDFD_SELF = 440, -10000

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
# Looked up before a fork, or each process would do so.
_process_madvise = _libc.syscall
_process_madvise.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint)
_process_madvise.restype = ctypes.c_long

_planned: list[Pages] = []


class Pages:
    """Those of ranges of memory (start, length) that this process has, as the kernel takes them."""

    def __init__(self, ranges: Sequence[tuple[int, int]] = ()) -> None:
        self.ranges = [one for one in ranges if _libc.madvise(*one, _MADV_POPULATE_WRITE) == 0]
        numbers = [number for one in self.ranges for number in one]
        self.vector = (ctypes.c_size_t * len(numbers))(*numbers)
        self.length = sum(numbers[1::2])


def written() -> _Ranges:
    """Return what this process alone has, of memory that it and its parent had when it was forked and since."""
    seen = []
    with open("/proc/self/maps") as maps, open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in maps.read().splitlines():
            place, kind, *_ = line.split(maxsplit=2)
            if kind.startswith("rw-p") and "[v" not in line:
                first, last = (int(address, 16) // mmap.PAGESIZE for address in place.split("-"))
                pagemap.seek(first * 8)
                seen.append((first, pagemap.read((last - first) * 8)))
    # Looked at only now: that writes to pages too.
    found: list[int] = []
    mine = _PRESENT | _EXCLUSIVE
    for first, entries in seen:
        found += [first + n for n, one in enumerate(array.array("Q", entries)) if one & (mine | _OF_A_FILE) == mine]
    return _joined(found)


def _joined(pages: Sequence[int]) -> _Ranges:
    ranges: _Ranges = []
    for page in pages:
        if ranges and page == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], page)
        else:
            ranges.append((page, page))
    return [(first * mmap.PAGESIZE, (last + 1 - first) * mmap.PAGESIZE) for first, last in ranges]


@contextlib.contextmanager
def owned_by_forks(pages: Pages) -> Iterator[None]:
    """Have processes that are forked meanwhile own pages from their first moment, where that is possible."""
    _planned.append(pages)
    try:
        yield
    finally:
        _planned.clear()


def _own() -> None:
    if _planned:
        pages = _planned.pop()
        count = len(pages.ranges)
        done = _process_madvise(_PROCESS_MADVISE, _PIDFD_SELF, pages.vector, count, _MADV_POPULATE_WRITE, 0)
        # An older kernel does not know it, and any stops where there is no memory any more: that is left out.
        for one in pages.ranges if done < pages.length else ():
            _libc.madvise(*one, _MADV_POPULATE_WRITE)


if sys.platform == "linux":
    os.register_at_fork(after_in_child=_own)
