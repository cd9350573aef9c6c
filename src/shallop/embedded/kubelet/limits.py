"""
Memory and CPU limits of containers: control groups for each run, where this process may make some (root; v1 and v2).

Source: Documentation/admin-guide/cgroup-v1/memory.rst, scheduler/sched-bwc.rst and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

__all__ = ["ControlGroups"]

_V1_MEMORY, _V1_CPU, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_PERIOD_US = 100_000
# The kernel refuses less.
_LEAST_QUOTA_US = 1_000


class ControlGroups:
    """
    The groups of one home: their names tell them from those of other homes.

    Args:
        home: its folder.
    """

    def __init__(self, home: Path) -> None:
        self._prefix = f"shallop-{zlib.crc32(os.fsencode(home.absolute())):08x}"
        # Pods that have some: looking through the groups of a thousand Pods at each end would add up.
        self._limited: set[str] = set()

    def limit(self, uid: str, run: str, *, memory_bytes: int | None, cpu_cores: float | None) -> list[str]:
        """
        Make the groups of one run of a container; ``existing`` has them.

        Returns:
            What this machine does not let us limit: ``memory``, ``cpu``.
        """
        failed = []
        self._limited.add(uid)
        if memory_bytes is not None and not _limit_memory(self._name(uid, run), memory_bytes):
            failed.append("memory")
        if cpu_cores is not None and not _limit_cpu(self._name(uid, run), cpu_cores):
            failed.append("cpu")
        return failed

    def existing(self, uid: str, run: str) -> list[str]:
        """Return the groups that a run has, which its processes must join."""
        if uid not in self._limited:
            return []
        groups = (root / self._name(uid, run) for root in (_V1_MEMORY, _V1_CPU, _V2))
        return [str(group) for group in groups if group.is_dir()]

    def ran_out_of_memory(self, uid: str, run: str) -> bool:
        """Say whether the kernel has killed a process of this run because its limit was reached."""
        name = self._name(uid, run)
        for file in (_V1_MEMORY / name / "memory.oom_control", _V2 / name / "memory.events"):
            with contextlib.suppress(OSError):
                counts = dict(line.split() for line in file.read_text().splitlines())
                return int(counts.get("oom_kill", 0)) > 0
        return False

    def remove(self, uid: str, run: str = "*") -> None:
        """Remove the groups of one run, or of all runs of a Pod, whose processes have ended."""
        if uid not in self._limited:
            return
        if run == "*":
            self._limited.discard(uid)
        for root in (_V1_MEMORY, _V1_CPU, _V2):
            _remove(root.glob(self._name(uid, run)) if run == "*" else [root / self._name(uid, run)])

    def adopt(self, uids: Collection[str]) -> None:
        """
        Take over what an earlier control plane has made, and remove what it left.

        Args:
            uids: the Pods that exist.
        """
        pattern = re.compile(rf"{self._prefix}-([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})-")
        for root in (_V1_MEMORY, _V1_CPU, _V2):
            for group in root.glob(f"{self._prefix}-*"):
                match = pattern.match(group.name)
                if match is not None and match[1] in uids:
                    self._limited.add(match[1])
                elif match is not None:
                    _remove([group])

    def _name(self, uid: str, run: str) -> str:
        return f"{self._prefix}-{uid}-{run}"


def _remove(groups: Iterable[Path]) -> None:
    for group in groups:
        with contextlib.suppress(OSError):
            group.rmdir()


def _limit_memory(name: str, size_bytes: int) -> bool:
    version1 = _V1_MEMORY.is_dir()
    group = (_V1_MEMORY if version1 else _V2) / name
    if not _make(group, {"memory.limit_in_bytes" if version1 else "memory.max": str(size_bytes)}):
        return False
    for swap, value in (("memory.memsw.limit_in_bytes", str(size_bytes)), ("memory.swap.max", "0")):
        with contextlib.suppress(OSError):  # the kernel may have no account of swap
            if (group / swap).exists():
                (group / swap).write_text(value)
    return True


def _limit_cpu(name: str, cores: float) -> bool:
    quota = max(_LEAST_QUOTA_US, round(cores * _PERIOD_US))
    if _V1_CPU.is_dir():
        files = {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota)}
        return _make(_V1_CPU / name, files)
    return _make(_V2 / name, {"cpu.max": f"{quota} {_PERIOD_US}"})


def _make(group: Path, files: Mapping[str, str]) -> bool:
    existed = group.is_dir()
    try:
        group.mkdir(exist_ok=True)
        for name, value in files.items():
            (group / name).write_text(value)
    except OSError:
        with contextlib.suppress(OSError):
            if not existed:
                group.rmdir()
        return False
    return True
