"""What containers and the machine use, read from /proc; for ``kubectl top``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from shallop.kube.node import Usage

__all__ = ["Sample", "difference", "take_sample"]

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class _Process(NamedTuple):
    parent: int
    cpu_s: float
    resident_bytes: int


class Sample(NamedTuple):
    """
    The state at one time.

    Args:
        cpu_s, memory_bytes: name -> CPU time so far (a container's ended children included), and memory now. The
            machine's name is empty.
    """

    at_s: float
    cpu_s: Mapping[str, float]
    memory_bytes: Mapping[str, int]


def take_sample(roots: Mapping[str, int], at_s: float) -> Sample:
    """
    Read /proc once; blocking, about 20 µs a process.

    Args:
        roots: container -> its first process; all that descends from it is counted.
        at_s: now, monotonic.
    """
    processes = _processes()
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    cpu, memory = {"": _machine_cpu_s()}, {"": _machine_memory_bytes()}
    for name, root in roots.items():
        members = [processes[pid] for pid in _tree(root, children) if pid in processes]
        cpu[name] = sum(process.cpu_s for process in members)
        memory[name] = sum(process.resident_bytes for process in members)
    return Sample(at_s, cpu, memory)


def difference(before: Sample, after: Sample) -> dict[str, Usage]:
    """Return what was used between two samples; a container that was not there before is left out."""
    window = max(after.at_s - before.at_s, 1e-3)
    return {
        name: Usage(max(0.0, used - before.cpu_s[name]) / window, after.memory_bytes[name], window)
        for name, used in after.cpu_s.items()
        if name in before.cpu_s
    }


def _tree(root: int, children: Mapping[int, Iterable[int]]) -> Iterable[int]:
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting.extend(children.get(pid, ()))


def _processes() -> dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                found[int(name)] = _parse(Path(f"/proc/{name}/stat").read_bytes(), name)
    return found


def _parse(stat: bytes, pid: str) -> _Process:
    fields = stat.rpartition(b")")[2].split()
    # user and system time, of the process itself and of its children that have ended
    cpu_s = sum(int(field) for field in fields[11:15]) * _TICK_S
    resident, shared = (int(field) for field in Path(f"/proc/{pid}/statm").read_bytes().split()[1:3])
    return _Process(int(fields[1]), cpu_s, (resident - shared) * _PAGE)


def _machine_cpu_s() -> float:
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    numbers = [int(field) for field in fields[:8]]
    return (sum(numbers) - numbers[3] - numbers[4]) * _TICK_S


def _machine_memory_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
    return (kib["MemTotal"] - kib.get("MemAvailable", kib["MemFree"])) * 1024
