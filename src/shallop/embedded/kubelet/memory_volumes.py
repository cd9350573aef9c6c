"""emptyDir volumes of medium Memory: a tmpfs on the folder of the volume, where the platform may mount one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from shallop.errors import NodeError
from shallop.kube.objects import Object, parse_quantity

__all__ = ["in_memory", "mount_memory", "remove_pod_folder", "size_of", "unmount_memory"]


def in_memory(pod: Object) -> set[str]:
    """Return the names of the volumes that are declared to be kept in memory."""
    volumes = pod["spec"].get("volumes") or ()
    return {volume["name"] for volume in volumes if (volume.get("emptyDir") or {}).get("medium") == "Memory"}


def size_of(pod: Object, name: str) -> int:
    """
    Return how many bytes a volume in memory may have; 0 = what the machine allows. Pure.

    As on Kubernetes, its limit, and never more than the containers of its Pod may use together.
    """
    spec = pod["spec"]
    volume = next(volume for volume in spec["volumes"] if volume["name"] == name)
    bounds: list[Decimal] = []
    if limit := (volume.get("emptyDir") or {}).get("sizeLimit"):
        bounds.append(parse_quantity(limit))
    limits = [((c.get("resources") or {}).get("limits") or {}).get("memory") for c in spec.get("containers") or ()]
    known = [parse_quantity(limit) for limit in limits if limit]
    if known and len(known) == len(limits):
        bounds.append(sum(known, Decimal(0)))
    return int(min((bound for bound in bounds if bound > 0), default=Decimal(0)))


def mount_memory(folder: Path, size_bytes: int) -> None:
    """
    Put a tmpfs on a folder unless there is one, as after a restart of the platform. Blocking.

    Raises:
        NodeError: the machine does not let us.
    """
    if os.path.ismount(folder):
        return
    options = "nosuid,nodev,mode=0777" + (f",size={size_bytes}" if size_bytes else "")
    # Raw arguments: a path may hold anything.
    command = ["mount", "-n", "-t", "tmpfs", "-o", options, "shallop", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NodeError(f"a volume in memory could not be mounted on {folder}: {done.stderr.strip()}")


def unmount_memory(pod_folder: Path) -> None:
    """Give back the memory of a Pod's volumes; what they hold is lost. Blocking; call when its containers are gone."""
    for folder in _mounted(pod_folder):
        subprocess.run(["umount", "-n", "-l", str(folder)], capture_output=True, check=False)


def _mounted(pod_folder: Path) -> Iterator[Path]:
    volumes = pod_folder / "volumes"
    if volumes.is_dir():
        yield from (folder for folder in volumes.iterdir() if os.path.ismount(folder))


def remove_pod_folder(folder: Path) -> None:
    """Remove all that a Pod had on this machine. Blocking."""
    unmount_memory(folder)
    shutil.rmtree(folder, ignore_errors=True)
