"""A forked process owns the memory that it was said to write to, from its first moment."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Forks, so it runs in a process without threads. Mappings are told apart by their numbers of pages.
_PROGRAM = """
import ctypes, json, mmap, os, sys
from shallop_pod import pages

def place(memory):
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))

kinds = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
size = 40 * mmap.PAGESIZE
gone, named, other = (mmap.mmap(-1, size, flags=kinds) for _ in range(3))
for memory in (gone, named, other):
    memory.write(b"x" * size)
ranges = [(place(memory), size) for memory in (gone, named)]
nowhere = (mmap.PAGESIZE, mmap.PAGESIZE)
planned = pages.Pages([nowhere, *ranges])
if not planned.ranges:
    os._exit(3)
assert planned.ranges == ranges
if "unmapped" in sys.argv:
    ctypes.CDLL(None).munmap(ctypes.c_void_p(ranges[0][0]), ctypes.c_size_t(size))
with pages.owned_by_forks(planned):
    pid = os.fork()
if pid == 0:
    written = pages.written()
    owned = {name: sum(max(0, min(a + n, place(memory) + size) - max(a, place(memory))) for a, n in written) // size
             for name, memory in (("named", named), ("other", other))}
    print(json.dumps(owned), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize("arguments", [[], ["unmapped"]])
def test_a_fork_owns_what_is_planned_and_nothing_else(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip("needs MADV_POPULATE_WRITE, Linux 5.14")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"named": 1, "other": 0}
