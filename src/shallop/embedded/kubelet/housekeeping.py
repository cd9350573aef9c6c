"""What is removed by itself: environments that nobody uses, and logs of Pods that are long gone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from shallop.embedded.kubelet.environments import EnvironmentInfo, Environments
from shallop.settings import Settings

__all__ = ["choose_removable", "clean_up", "processes_using", "why_kept"]

_DAY_S = 86_400.0
# A fork-server, or the next step of a run, may need what was used a moment ago.
_YOUNG_S = 3600.0


def choose_removable(
    infos: Iterable[EnvironmentInfo], used: Mapping[str, int], now: float, *, max_bytes: float, max_age_s: float
) -> list[str]:
    """
    Return the keys of environments to remove: those that are too old, then the oldest while all are too large. Pure.

    Args:
        used: key -> number of processes that run in it; these stay, and those used within the last hour.
        max_bytes, max_age_s: 0 = no limit.
    """
    chosen = []
    kept: list[EnvironmentInfo] = []
    for info in infos:
        idle = now - info.last_used > _YOUNG_S and not used.get(info.key)
        if idle and max_age_s and now - info.last_used > max_age_s:
            chosen.append(info.key)
        else:
            kept.append(info)
    total = sum(info.size_bytes for info in kept)
    for info in sorted(kept, key=lambda info: info.last_used):
        if not max_bytes or total <= max_bytes:
            break
        if now - info.last_used > _YOUNG_S and not used.get(info.key):
            chosen.append(info.key)
            total -= info.size_bytes
    return chosen


def why_kept(info: EnvironmentInfo, used: Mapping[str, int], now: float, settings: Settings) -> str:
    """Say in a few words why an environment is still there."""
    if count := used.get(info.key):
        return f"in use by {count} process{'es' if count > 1 else ''}"
    if not settings.env_max_age_days:
        return "cached"
    left = settings.env_max_age_days - (now - info.last_used) / _DAY_S
    return f"cached, removed in {left:.0f} days" if left > 0 else "removed at the next clean-up"


def processes_using(root: Path) -> Counter[str]:
    """Count the processes of each environment below a cache; blocking, about 10 µs a process."""
    found: Counter[str] = Counter()
    pattern = re.compile(re.escape(os.fsencode(root.absolute())) + rb"/([0-9a-f]{32})/")
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{name}/environ").read_bytes() + b"\0" + Path(f"/proc/{name}/cmdline").read_bytes()
                found.update({match.decode() for match in pattern.findall(text.replace(b"\0", b"/\0"))})
    return found


def clean_up(environments: Environments, settings: Settings, known_pods: set[str]) -> list[str]:
    """
    Remove what the settings say; returns what was removed, for the log. Blocking.

    Args:
        known_pods: uids of Pods that exist: their logs stay.
    """
    now = time.time()
    used = processes_using(environments.root)
    limits = {"max_bytes": settings.env_max_gib * 2**30, "max_age_s": settings.env_max_age_days * _DAY_S}
    removable = choose_removable(environments.list_all(), used, now, **limits)
    removed = [f"environment {key}" for key in removable if environments.remove(key)]
    if settings.log_retention_days:
        removed += _remove_logs(settings.logs, known_pods, now - settings.log_retention_days * _DAY_S)
    return removed


def _remove_logs(logs: Path, known_pods: set[str], before: float) -> list[str]:
    removed = []
    for folder in logs.glob("*/*_*"):
        if folder.name.rpartition("_")[2] in known_pods:
            continue
        with contextlib.suppress(OSError):
            newest = max((file.stat().st_mtime for file in folder.rglob("*")), default=folder.stat().st_mtime)
            if newest < before:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"logs {folder.parent.name}/{folder.name}")
    return removed
