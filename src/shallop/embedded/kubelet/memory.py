"""
Memory limits of containers: a control group for each run, where this process may make one (root; cgroup v1 or v2).

Source: Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["existing_group", "limit_memory", "ran_out_of_memory", "remove_groups"]

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def limit_memory(uid: str, run: str, size_bytes: int) -> Path | None:
    """Make the group of one run of a container; None where this machine does not let us."""
    root, file = (_V1, "memory.limit_in_bytes") if _V1.is_dir() else (_V2, "memory.max")
    group = root / _name(uid, run)
    try:
        group.mkdir(exist_ok=True)
        (group / file).write_text(str(size_bytes))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    for swap, value in (("memory.memsw.limit_in_bytes", str(size_bytes)), ("memory.swap.max", "0")):
        with contextlib.suppress(OSError):  # the kernel may have no account of swap
            if (group / swap).exists():
                (group / swap).write_text(value)
    return group


def existing_group(uid: str, run: str) -> Path | None:
    """Return the group of a run, None when it has none."""
    return next((root / _name(uid, run) for root in (_V1, _V2) if (root / _name(uid, run)).is_dir()), None)


def ran_out_of_memory(uid: str, run: str) -> bool:
    """Say whether the kernel has killed a process of this run because its limit was reached."""
    for file in (_V1 / _name(uid, run) / "memory.oom_control", _V2 / _name(uid, run) / "memory.events"):
        with contextlib.suppress(OSError):
            counts = dict(line.split() for line in file.read_text().splitlines())
            return int(counts.get("oom_kill", 0)) > 0
    return False


def remove_groups(uid: str) -> None:
    """Remove the groups of a Pod, whose processes have ended."""
    for root in (_V1, _V2):
        for group in root.glob(_name(uid, "*")):
            with contextlib.suppress(OSError):
                group.rmdir()


def _name(uid: str, run: str) -> str:
    return f"shallop-{uid}-{run}"
