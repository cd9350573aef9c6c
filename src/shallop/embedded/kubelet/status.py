"""The status of a Pod, computed from what its containers do. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from shallop.embedded.kubelet.sandbox import Ended
from shallop.kube.objects import Object, format_time

__all__ = ["ContainerRecord", "render_status", "terminated_state"]


@dataclass
class ContainerRecord:
    """
    What the node knows of one container.

    Args:
        restarts: which run this is, from 0; its id is ``name-restarts``.
        state, last: as in ``containerStatuses``: one of waiting, running, terminated.
        finished: no further run follows.
    """

    name: str
    image: str
    init: bool = False
    sidecar: bool = False
    restarts: int = 0
    state: dict[str, Any] = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: dict[str, Any] = field(default_factory=dict)
    ready: bool = False
    started: bool = False
    finished: bool = False
    next_start: float = 0.0
    failures: int = 0

    @property
    def id(self) -> str:
        return f"{self.name}-{self.restarts}"

    @property
    def running(self) -> bool:
        return "running" in self.state

    @property
    def exit_code(self) -> int | None:
        """Exit code of the run that has ended; None while it waits or runs."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def render(self, uid: str) -> dict[str, Any]:
        return {
            "name": self.name,
            "image": self.image,
            "imageID": self.image,
            "containerID": f"shallop://{uid}/{self.id}" if "waiting" not in self.state or self.restarts else "",
            "restartCount": self.restarts,
            "ready": self.ready,
            "started": self.started,
            "state": self.state,
            "lastState": self.last,
        }


def seconds_time(seconds: float) -> str:
    return _second(int(seconds))


@lru_cache(maxsize=16)
def _second(second: int) -> str:
    return format_time(datetime.fromtimestamp(second, UTC))


def terminated_state(ended: Ended, uid: str, message: str, *, out_of_memory: bool = False) -> dict[str, Any]:
    """Return the ``terminated`` state of a run that has ended."""
    if ended.code == 0:
        reason = "Completed"
    elif out_of_memory:
        reason = "OOMKilled"
    else:
        reason = "StartError" if ended.code == 128 and ended.signal is None else "Error"
    state: dict[str, Any] = {
        "exitCode": ended.code,
        "reason": reason,
        "startedAt": seconds_time(ended.started_at),
        "finishedAt": seconds_time(ended.at),
        "containerID": f"shallop://{uid}/{ended.id}",
    }
    if ended.signal:
        state["signal"] = ended.signal
    if message:
        state["message"] = message[-4096:]
    return {"terminated": state}


def render_status(
    pod: Object,
    records: Sequence[ContainerRecord],
    *,
    address: str,
    start_time: str,
    now: datetime,
    phase: str = "",
    reason: str = "",
    message: str = "",
) -> dict[str, Any]:
    """
    Return the whole status.

    Args:
        address: the Pod's address; empty before it has one.
        phase: overrides what the containers say: a Pod that was evicted or ran too long.
    """
    uid = pod["metadata"]["uid"]
    init, main = [r for r in records if r.init], [r for r in records if not r.init]
    phase = phase or _phase(init, main)
    old = pod.get("status") or {}
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": _conditions(old.get("conditions") or [], phase, init, main, bool(address), now),
        "containerStatuses": [record.render(uid) for record in main],
        "qosClass": old.get("qosClass") or "BestEffort",
        "startTime": start_time,
        "observedGeneration": pod["metadata"].get("generation", 1),
    }
    if init:
        status["initContainerStatuses"] = [record.render(uid) for record in init]
    if address:
        status |= {
            "podIP": address,
            "podIPs": [{"ip": address}],
            "hostIP": "127.0.0.1",
            "hostIPs": [{"ip": "127.0.0.1"}],
        }
    status["reason"] = reason or None
    status["message"] = message or None
    return status


def _phase(init: Sequence[ContainerRecord], main: Sequence[ContainerRecord]) -> str:
    if any(r.finished and r.exit_code for r in init if not r.sidecar):
        return "Failed"
    if main and all(r.finished for r in main):
        return "Succeeded" if all(r.exit_code == 0 for r in main) else "Failed"
    if any(r.running or r.exit_code is not None or r.restarts for r in main):
        return "Running"
    return "Pending"


def _conditions(
    old: list[dict[str, Any]],
    phase: str,
    init: Sequence[ContainerRecord],
    main: Sequence[ContainerRecord],
    has_sandbox: bool,
    now: datetime,
) -> list[dict[str, Any]]:
    completed = phase in ("Succeeded", "Failed")
    initialized = all(r.exit_code == 0 or (r.sidecar and r.started) for r in init)
    unready = [r.name for r in (*main, *(r for r in init if r.sidecar)) if not r.ready]
    if completed:
        ready_reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
        ready_message = ""
    else:
        ready_reason = "ContainersNotReady" if unready else ""
        ready_message = f"containers with unready status: [{' '.join(unready)}]" if unready else ""
    incomplete = [r.name for r in init if r.exit_code != 0 and not (r.sidecar and r.started)]
    init_reason = "" if initialized else "ContainersNotInitialized"
    if initialized and phase == "Succeeded":
        init_reason = "PodCompleted"
    init_message = f"containers with incomplete status: [{' '.join(incomplete)}]" if incomplete else ""
    ready = "True" if not unready and not completed and main else "False"
    at = format_time(now)
    conditions = {condition["type"]: condition for condition in old}
    for type_, status, reason, message in (
        ("PodReadyToStartContainers", "True" if has_sandbox and not completed else "False", "", ""),
        ("Initialized", "True" if initialized else "False", init_reason, init_message),
        ("Ready", ready, ready_reason, ready_message),
        ("ContainersReady", ready, ready_reason, ready_message),
    ):
        before = conditions.get(type_) or {}
        transition = before.get("lastTransitionTime", at) if before.get("status") == status else at
        condition = {"type": type_, "status": status, "lastTransitionTime": transition}
        conditions[type_] = condition | {k: v for k, v in (("reason", reason), ("message", message)) if v}
    conditions.setdefault("PodScheduled", {"type": "PodScheduled", "status": "True", "lastTransitionTime": at})
    return list(conditions.values())
