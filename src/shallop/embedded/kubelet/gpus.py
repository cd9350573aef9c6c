"""
Which Pod has which GPU of this machine.

The scheduler counts GPUs (``nvidia.com/gpu``); here a container gets its own, by number, in ``CUDA_VISIBLE_DEVICES``,
and a container that asks for none sees none. What a container has is a file in its Pod's folder: it survives the
control plane, and is free when the Pod has ended. Nothing keeps a program from looking at other GPUs on purpose.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from shallop.kube.objects import Object, parse_quantity

__all__ = ["GPU", "Gpus", "asked_gpus", "find_gpus"]

GPU = "nvidia.com/gpu"
_FILE = "gpus.json"


def find_gpus(devices: Path = Path("/dev")) -> tuple[int, ...]:
    """Return the numbers of NVIDIA's devices by their device files, without any library."""
    names = (path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*"))
    return tuple(sorted(int(name) for name in names if name.isdigit()))


def asked_gpus(container: Object) -> int:
    """Return how many GPUs a container asks for."""
    resources = container.get("resources") or {}
    amount = (resources.get("limits") or {}).get(GPU) or (resources.get("requests") or {}).get(GPU) or 0
    return int(parse_quantity(amount))


class Gpus:
    """
    The GPUs of this machine and who has them.

    Args:
        numbers: as CUDA counts them.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)

    def variables(self, pod_folder: Path, container: Object) -> dict[str, str]:
        """Return what a container must be told of GPUs: nothing on a machine that has none."""
        if not self.numbers:
            return {}
        chosen = self._take(pod_folder, str(container["name"]), asked_gpus(container))
        # Else CUDA counts the fastest first, and device files by their place on the bus.
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, chosen)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def release(self, pod_folder: Path) -> None:
        """Free what a Pod has."""
        if not self.numbers:
            return
        (pod_folder / _FILE).unlink(missing_ok=True)

    def _take(self, pod_folder: Path, container: str, count: int) -> list[int]:
        own = _read(pod_folder / _FILE)
        if count == 0 or len(own.get(container, ())) == count:
            return list(own.get(container, ())) if count else []
        own.pop(container, None)
        taken = Counter(number for held in own.values() for number in held)
        for file in pod_folder.parent.glob(f"*/{_FILE}"):
            if file.parent != pod_folder:
                taken.update(number for held in _read(file).values() for number in held)
        # None is free where a Pod is only just ending: the one that fewest have, then.
        chosen = sorted(sorted(self.numbers, key=lambda number: (taken[number], number))[:count])
        partial = pod_folder / f".{_FILE}"
        partial.write_text(json.dumps({**own, container: chosen}))
        os.replace(partial, pod_folder / _FILE)
        return chosen


def _read(file: Path) -> dict[str, list[int]]:
    try:
        found: dict[str, list[int]] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found
